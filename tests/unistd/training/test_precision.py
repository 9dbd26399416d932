"""Training in float16: the loss has a scale, which is part of the run, and its overflows are no fault."""

import io

import pytest
import torch
from rich.console import Console
from support.many_processes import SHARED, processes_of
from support.processes import together
from support.run_folder import refusal_of
from support.stopping import Stopping
from support.tiny_run import STEPS, tiny_config
from torch.utils._pytree import tree_leaves

from unistd.cli import main
from unistd.training.checkpoint import load_checkpoint, save_checkpoint
from unistd.training.errors import TrainingError
from unistd.training.log import read_log
from unistd.training.processes import ALONE
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.stop import Stopped

FP16 = {"train.precision": "16-mixed"}


def trainer(folder, changes=None, resume=False, processes=ALONE):
    folder.mkdir(exist_ok=True)
    return Stopping(tiny_config(folder, changes), Run(folder), Console(file=io.StringIO()), resume, processes)


def with_scale(running, scale):
    """The same trainer, whose loss has this scale: tiny models have large gradients."""
    running.scale.load_state_dict(running.scale.state_dict() | {"scale": scale})
    return running


def losses(folder):
    return [record["losses"] for record in read_log(Run(folder).log) if "losses" in record]


@pytest.mark.parametrize("recipe", ["sampled", "printed"])
def test_float16_learns_as_float32_does(tmp_path, recipe):
    kinds = []
    for name, changes in (("half", FP16), ("full", {})):
        running = trainer(tmp_path / name, {"ranks.recipe": recipe} | changes)
        if changes:
            with_scale(running, 64.0)
        hook = lambda module, inputs, output: kinds.append(output.dtype)  # noqa: E731
        running.model.module.trunk.blocks[0].mlp.fc1.register_forward_hook(hook)
        running.fit()
    assert kinds[0] == torch.float16
    assert kinds[-1] == torch.float32
    for half, full in zip(losses(tmp_path / "half"), losses(tmp_path / "full"), strict=True):
        assert half == pytest.approx(full, rel=2e-2)
    state = load_checkpoint(tmp_path / "half/checkpoint.pt")
    assert {value.dtype for value in state["model"].values() if value.is_floating_point()} == {torch.float32}
    assert state["scale"]["scale"] == 64
    assert state["scale"]["_growth_tracker"] == STEPS
    assert all(r["loss_scale"] == 64 for r in read_log(tmp_path / "half/log.jsonl") if "losses" in r)


def test_gradients_are_those_without_a_scale(tmp_path):
    running = trainer(tmp_path, FP16)
    batch = next(iter(running.loader))
    gradients = []
    for scale in (64.0, 1.0):
        with_scale(running, scale)
        torch.manual_seed(1)
        running.objective.backward([batch], lambda: 0.0)
        running.scale.unscale([running.optimizer.optimizer, running.ranks.optimizer])
        running.scale.update()
        gradients.append([p.grad for p in running.model.module.parameters() if p.grad is not None])
        running.model.zero_grad()
        running.ranks.optimizer.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-4)


def test_an_overflow_halves_the_scale_and_is_no_fault(tmp_path):
    running = with_scale(trainer(tmp_path, FP16 | {"train.skip_limit": 0}), 2.0**40)
    running.fit()
    records = [record for record in read_log(running.run.log) if "losses" in record]
    skipped = [record.get("skipped", 0) for record in records]
    assert skipped[:3] == [1, 1, 1], "far too large a scale"
    assert [record["loss_scale"] for record in records][:3] == [2.0**40, 2.0**39, 2.0**38]
    assert running.account.skips.row == 0


def test_what_no_scale_mends_is_a_fault(tmp_path):
    running = with_scale(trainer(tmp_path, FP16 | {"train.skip_limit": 1}), 2.0)
    running.model.module.trunk.norm_out.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"step 4: the gradient is NaN or Inf; .* 2 such steps in a row"):
        running.fit()  # at the scales of 2, 1, 1/2 and 1/4


def test_the_scale_is_part_of_the_run(tmp_path):
    changes = FP16 | {"train.log_every": 3}
    whole = with_scale(trainer(tmp_path / "whole", changes), 2.0**18)
    whole.fit()
    expected = load_checkpoint(whole.run.checkpoint)
    stopping = with_scale(trainer(tmp_path / "again", changes), 2.0**18)
    stopping.stop_at = 3
    with pytest.raises(Stopped):
        stopping.fit()
    resumed = trainer(tmp_path / "again", changes, resume=True)
    resumed.fit()
    found = load_checkpoint(resumed.run.checkpoint)
    assert found["scale"] == expected["scale"]
    assert 3 <= expected["skips"]["total"] < STEPS
    for key in ("model", "optimizer", "ranks", "random", "log", "skips"):
        mine, other = tree_leaves(found[key]), tree_leaves(expected[key])
        assert len(mine) == len(other)
        same = (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(mine, other, strict=True))
        assert all(same), key


@pytest.mark.parametrize(("key", "value"), [("scale", 0.0), ("_growth_tracker", -1), ("growth_factor", 3.0)])
def test_a_damaged_scale_is_named(tmp_path, capsys, key, value):
    changes = FP16 | {"train.epochs": 2, "ranks.epochs": 1, "data.val_samples": 0}
    running = trainer(tmp_path / "run", changes)
    running.stop_at = 3
    with pytest.raises(Stopped):
        running.fit()
    (tmp_path / "again.yaml").write_text(dump_config(running.config))
    state = load_checkpoint(running.run.checkpoint)
    state["scale"][key] = value
    save_checkpoint(running.run.checkpoint, state)
    line = refusal_of(capsys, "train", "--config", tmp_path / "again.yaml", "--resume")
    assert f"'scale.{key}'" in line


def in_two(rank: int, folder: str) -> None:
    from pathlib import Path

    processes = processes_of(rank)
    for strategy in ("ddp", "fsdp"):
        changes = SHARED | FP16 | {"train.strategy": strategy, "train.epoch_samples": 12}
        running = with_scale(trainer(Path(folder) / strategy, changes, processes=processes), 64.0)

        def spoil(module, inputs, output, running=running):
            if running.step == 1 and processes.rank == 1 and output.requires_grad:
                output.register_hook(lambda gradient: gradient * float("inf"))

        running.model.module.trunk.norm_out.register_forward_hook(spoil)
        running.fit()
        assert processes.gather((running.scale.state_dict()["scale"], running.account.skips.total)) == [(32.0, 1)] * 2


def test_two_processes_have_one_scale(tmp_path):
    together(in_two, tmp_path)


def test_a_run_in_float16_is_measured(tmp_path):
    changes = FP16 | {"train.epochs": 1, "ranks.epochs": 1}
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run", changes)))
    assert main(["train", "--config", str(file)]) == 0
