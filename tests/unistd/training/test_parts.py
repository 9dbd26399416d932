"""What of a model learns: parts that are frozen, tasks that are only measured, smaller rates for what was learned."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.bad_config import refused
from support.many_processes import SHARED, assert_same_course, processes_of, train
from support.processes import together
from support.stopping import Stopping
from support.tiny_run import tiny_config

from unistd.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from unistd.training.parts import part_of
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.stop import Stopped

ONLY = {"train.only": ["enso"], "train.freeze": ["trunk", "adapters"], "ranks.epochs": 0}
TOGETHER = SHARED | {"train.freeze": ["trunk", "kth"], "train.only": ["taxibj", "kth"], "train.epoch_samples": 12}


def trainer(folder, changes, resume=False):
    folder.mkdir(exist_ok=True)
    return Stopping(tiny_config(folder, changes), Run(folder), Console(file=io.StringIO()), resume)


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.module.named_parameters()}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A complete run of two tasks."""
    folder = tmp_path_factory.mktemp("parts") / "learned"
    options = tiny_config(folder).task_options
    changes = {"tasks": ["taxibj", "kth"], "task_options": {t: options[t].model_dump() for t in ("taxibj", "kth")}}
    one = trainer(folder, changes)
    one.fit()
    one.run.config.write_text(dump_config(one.config))
    return folder


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"train.freeze": ["trunk"]}, {"adapters", "taxibj", "kth", "enso"}),
        ({"train.freeze": ["adapters", "kth"], "ranks.epochs": 0}, {"trunk", "taxibj", "enso"}),
        ({"train.only": ["enso", "kth"]}, {"trunk", "adapters", "kth", "enso"}),
        (ONLY, {"enso"}),
    ],
    ids=["trunk", "adapters and a task", "two of three tasks", "one task alone"],
)
def test_what_is_frozen_stays_and_the_rest_learns(tmp_path, changes, moved):
    one = trainer(tmp_path, changes)
    before = weights(one)
    held = {id(p) for group in one.optimizer.param_groups for p in group["params"]}
    parameters = dict(one.model.module.named_parameters())
    assert {part_of(name) for name, parameter in parameters.items() if id(parameter) in held} == moved
    one.fit()
    # frozen ranks are rounded, which is no learning
    changed = {n for n, value in weights(one).items() if not torch.equal(value, before[n]) and not n.endswith(".rank")}
    assert {part_of(name) for name in changed} == moved


def test_a_run_of_one_task_leaves_the_others_to_the_bit_and_goes_on_exactly(tmp_path, learned):
    changes = ONLY | {"train.init_from": str(learned)}
    whole = trainer(tmp_path / "whole", changes)
    start = weights(whole)
    whole.fit()
    end = weights(whole)
    assert {part_of(name) for name in end if not torch.equal(end[name], start[name])} == {"enso"}
    stopped = trainer(tmp_path / "stopped", changes)
    stopped.stop_at = 3
    with pytest.raises(Stopped):
        stopped.fit()
    resumed = trainer(tmp_path / "stopped", changes, resume=True)
    resumed.fit()
    assert all(torch.equal(value, end[name]) for name, value in weights(resumed).items())


def test_what_was_learned_has_a_smaller_rate(tmp_path, learned):
    changes = {"train.init_from": str(learned), "train.learned_lr_factor": 0.1, "ranks.epochs": 0}
    one = trainer(tmp_path, changes | {"optim.warmup": 0.0})
    rates = {id(p): group["initial_lr"] for group in one.optimizer.param_groups for p in group["params"]}
    for name, parameter in one.model.module.named_parameters():
        if not name.endswith(".rank"):
            assert rates[id(parameter)] == pytest.approx(0.01 if part_of(name) == "enso" else 0.001), name
    one.stop_at = 5
    with pytest.raises(Stopped):
        one.fit()
    assert load_checkpoint(one.run.checkpoint)["learned"] == ["taxibj", "kth"]
    assert trainer(tmp_path, changes | {"optim.warmup": 0.0}, resume=True).learned == ["taxibj", "kth"]
    state = load_checkpoint(one.run.checkpoint)
    state["learned"] = ["kth", "taxibj"]
    save_checkpoint(one.run.checkpoint, state)
    with pytest.raises(
        CheckpointError, match=r"'learned': expected some of the tasks taxibj, kth, enso, in their order"
    ):
        trainer(tmp_path, changes | {"optim.warmup": 0.0}, resume=True)


def in_two(rank: int, folder: str) -> None:
    processes = processes_of(rank)
    for strategy in ("ddp", "fsdp"):
        train(Path(folder) / strategy, TOGETHER | {"train.strategy": strategy}, processes)


def test_two_processes_freeze_what_one_does(tmp_path):
    train(tmp_path / "one", TOGETHER)
    together(in_two, tmp_path)
    for strategy in ("ddp", "fsdp"):
        assert_same_course(tmp_path / strategy, tmp_path / "one")


def test_wrong_parts_are_refused():
    refused("demo", ["train.freeze=[trnk]"], "train.freeze: expected any of trunk, adapters, taxibj", "'trnk'")
    refused("demo", ["train.only=[sea]"], "train.only: expected any of taxibj", "'sea'")
    refused("demo", ["train.only=[]"], "'train.only'")
    refused(
        "demo", ["train.only=[kth]", "train.loss_weights.enso=2"], "train.loss_weights: expected any of kth", "'enso'"
    )
    refused("demo", ["train.only=[kth]", "train.tasks_per_step=2"], "train.tasks_per_step is 2, but there are 1 tasks")
    refused("demo", ["train.freeze=[adapters]"], "train.freeze names adapters, but ranks.epochs is 4, expected 0")
    nothing = ["train.freeze=[trunk, adapters, kth]", "train.only=[kth]", "ranks.epochs=0"]
    refused("demo", nothing, "train.freeze: [trunk, adapters, kth] leaves nothing to learn")
    refused("demo", ["train.learned_lr_factor=0.1"], "train.learned_lr_factor is 0.1, but there is no train.init_from")
