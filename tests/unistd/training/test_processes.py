"""Several processes train one model: the same steps as one process takes, and nothing is left of a job that fails."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from support.many_processes import (
    HALF,
    SHARED,
    STEPS,
    assert_close,
    assert_same_course,
    frozen_trunk,
    half_way,
    processes_of,
    train,
)
from support.processes import together
from support.tiny_run import tiny_config

from unistd.training.checkpoint import load_checkpoint
from unistd.training.data import MixedBatchSampler, SharedBatches
from unistd.training.evaluate import evaluate, held_out, values_of
from unistd.training.processes import Processes
from unistd.training.run import Run, build_model

SHORT = SHARED | {"train.epoch_samples": 6}
PRINTED = SHORT | {"ranks.recipe": "printed"}
SIZES = (1, 2, 5)  # of splits that two processes measure


def measured(processes: Processes, folder: Path) -> dict[int, object]:
    """Results of an untrained model on splits of various sizes."""
    found = {}
    for size in SIZES:
        config = tiny_config(folder, {"data.val_samples": size})
        torch.manual_seed(1)
        model = build_model(config)
        for decoder in model.decoders.values():
            torch.nn.init.normal_(decoder.readout.weight)
        found[size] = values_of(evaluate(model, held_out(config, "val"), 2, processes=processes))
    return found


def in_two(rank: int, folder: str) -> None:
    """All that this file asks two processes for."""
    processes, folder = processes_of(rank), Path(folder)
    train(folder / "ddp", SHARED, processes)
    train(folder / "fsdp", SHARED | {"train.strategy": "fsdp"}, processes)
    train(folder / "printed fsdp", PRINTED | {"train.strategy": "fsdp"}, processes)
    for strategy in ("ddp", "fsdp"):
        train(folder / f"one then {strategy}", SHARED | {"train.strategy": strategy}, processes, resume=True)
    with frozen_trunk():
        train(folder / "frozen ddp", SHORT, processes)
        sharded = SHORT | {"train.strategy": "fsdp"}
        train(folder / "frozen sharded", sharded, processes)
        train(folder / "frozen whole", sharded | {"train.shard_frozen": False}, processes)
    results = processes.gather(measured(processes, folder))
    assert results[0] == results[1]
    if processes.first:
        torch.save(results[0], folder / "results.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder of runs of one process and of two."""
    folder, threads = tmp_path_factory.mktemp("processes"), torch.get_num_threads()
    torch.set_num_threads(1)
    train(folder / "one", SHARED)
    train(folder / "printed one", PRINTED)
    with frozen_trunk():
        train(folder / "frozen one", SHORT)
    for strategy in ("ddp", "fsdp"):
        half_way(folder / "one", folder / f"one then {strategy}")
    together(in_two, folder)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize(
    ("mine", "expected"),
    [
        ("ddp", "one"),
        ("fsdp", "one"),
        ("printed fsdp", "printed one"),
        ("frozen ddp", "frozen one"),
        ("frozen sharded", "frozen one"),
        ("frozen whole", "frozen one"),
    ],
    ids=lambda name: name,
)
def test_two_processes_take_the_steps_of_one_across_the_freezing_of_ranks(runs, mine, expected):
    assert_same_course(runs / mine, runs / expected)
    one, two = (load_checkpoint(Run(runs / name).checkpoint) for name in (expected, mine))
    for name, ranks in one["model"].items():
        if name.endswith((".rank", ".rank_frozen")):
            assert torch.equal(ranks, two["model"][name]), name
    assert two["step"] == one["step"] == (STEPS if expected == "one" else 4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_checkpoint_is_that_of_one_process(runs, strategy):
    def form(value):
        if isinstance(value, dict):
            return {key: form(part) for key, part in value.items()}
        return (type(value), value.dtype, value.shape) if isinstance(value, torch.Tensor) else type(value)

    one, two = (load_checkpoint(runs / name / f"{HALF}.pt") for name in ("one", strategy))
    two["config"]["train"]["strategy"] = one["config"]["train"]["strategy"]
    assert form(one) == form(two)
    assert torch.equal(one["random"]["cpu"], two["random"]["cpu"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_goes_on_where_two_stopped_and_two_where_one_did(runs, tmp_path, strategy):
    assert_same_course(runs / f"one then {strategy}", runs / "one")
    folder = half_way(runs / strategy, tmp_path / "two then one")
    train(folder, SHARED, resume=True)
    assert_same_course(folder, runs / "one")


@pytest.mark.parametrize("size", SIZES)
def test_results_are_those_of_every_sample_once(runs, size):
    found = torch.load(runs / "results.pt", weights_only=True)[size]
    expected = measured(Processes(), runs)[size]
    assert found.keys() == expected.keys()
    for task, results in expected.items():
        for forecaster, values in results.items():
            assert_close(found[task][forecaster], values, 1e-6)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_every_sample_of_a_step_is_in_one_pass_of_one_process(world, accumulate):
    sampler = MixedBatchSampler({"a": 7, "b": 5}, 6 * accumulate, 0, 0, range(3))
    passes = [list(SharedBatches(sampler, accumulate, Processes(rank, world, rank, world))) for rank in range(world)]
    for step in range(3):
        mine = [part for shares in passes for part in shares[step * accumulate : (step + 1) * accumulate]]
        assert sorted(chain.from_iterable(mine)) == sorted(sampler.batch(step))
        assert {len(part) for part in mine} == {12 // world}
    assert len(SharedBatches(sampler, accumulate, Processes())) == 3 * accumulate
