"""Steps that are NaN or infinite change nothing, some times in a row; then the run stops and says why."""

import io
import math
import signal

import pytest
import torch
from rich.console import Console
from support.many_processes import SHARED, processes_of
from support.processes import together
from support.tiny_run import STEPS, tiny_config
from torch.utils._pytree import tree_leaves

from unistd.training.checkpoint import load_checkpoint
from unistd.training.errors import TrainingError
from unistd.training.log import read_log
from unistd.training.processes import ALONE
from unistd.training.run import Run
from unistd.training.stop import Stopped
from unistd.training.trainer import Trainer


class Spoiling(Trainer):
    """The gradient of some steps is infinite: in the numbers that stand for the device's, where the step is skipped."""

    spoiled = ()
    stop_at = None

    def _clip_gradients(self):
        self.before = self.held()  # after the ranks were frozen, where this step begins with that
        if self.step + 1 in self.spoiled:
            first = next(p for name, p in self.model.named_parameters() if p.grad is not None and "decoders" in name)
            with torch.no_grad():
                first.grad.mul_(math.inf)
        return super()._clip_gradients()

    def _train_step(self, *arguments):
        super()._train_step(*arguments)
        if self.step in self.spoiled:
            before, after = self.before, self.held()
            assert_equal(before, after[: len(before)])
            assert not any(torch.as_tensor(moments).any() for moments in after[len(before) :])  # of the first step
        if self.step == self.stop_at:
            signal.raise_signal(signal.SIGTERM)

    def held(self):
        """All that a skipped step leaves as it was, copied."""
        ranks = self.ranks.state_dict()["state"]
        ranks = {
            index: {k: v for k, v in state.items() if k not in ("step", "skipped")} for index, state in ranks.items()
        }
        weights = {k: v for k, v in self.model.module.state_dict().items() if not k.endswith("_extra_state")}  # window
        trees = (weights, self.optimizer.state_dict()["state"], ranks)
        return [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in tree_leaves(trees)]


def assert_equal(before, after):
    assert len(before) == len(after)
    for mine, other in zip(before, after, strict=True):
        assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other


def trainer(folder, changes=None, spoiled=(), console=None, processes=ALONE, resume=False):
    folder.mkdir(exist_ok=True)
    console = console or Console(file=io.StringIO(), width=400)
    found = Spoiling(tiny_config(folder, changes), Run(folder), console, resume, processes)
    found.spoiled = spoiled
    return found


def spoil(running, index, value):
    """Puts `value` into the targets of a training sample of "kth"."""
    datasets = running.loader.dataset.datasets
    whole = datasets["kth"]

    class Spoiled:
        spec, source = whole.spec, whole.source

        def __len__(self):
            return len(whole)

        def __getitem__(self, at):
            inputs, targets = whole[at]
            return inputs, targets.clone().fill_(value) if at == index else targets

    datasets["kth"] = Spoiled()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_data_stop_training_before_the_weights_change(tmp_path, value):
    running = trainer(tmp_path)
    sampler = running.loader.batch_sampler.sampler
    index = sampler.batch(4)[-1][1]  # of "enso"; any that the first steps do not draw of "kth"
    drawn = [[i for task, i in sampler.batch(step) if task == "kth"] for step in range(STEPS)]
    index = next(i for i in drawn[2] if i not in drawn[0] + drawn[1])
    spoil(running, index, value)
    named = rf"step 3: the loss of task 'kth' is (nan|inf); its frames hold NaN or Inf: training sample {index} of "
    with pytest.raises(TrainingError, match=named):
        running.fit()
    assert load_checkpoint(running.run.checkpoint)["step"] == 2, "the last good epoch"
    assert all(torch.isfinite(value).all() for value in running.model.module.state_dict().values())


@pytest.mark.parametrize("limit", [0, 2])
def test_divergence_stops_after_the_limit_and_names_task_and_samples(tmp_path, limit):
    out = io.StringIO()
    running = trainer(tmp_path, {"train.skip_limit": limit}, console=Console(file=out, width=400))
    samples = [index for task, index in running.loader.batch_sampler.sampler.batch(limit) if task == "enso"]
    with torch.no_grad():
        running.model.module.decoders["enso"].readout.bias.fill_(1e30)
    before = {name: value.clone() for name, value in running.model.module.decoders.named_parameters()}
    named = f"training samples {', '.join(map(str, dict.fromkeys(samples)))} of generated"
    with pytest.raises(TrainingError) as error:
        running.fit()
    line = str(error.value)
    assert line.startswith(f"step {limit + 1}: the loss of task 'enso' is inf; its frames are finite ({named}")
    assert line.endswith(f"): {limit + 1} such steps in a row, train.skip_limit is {limit}; try a lower optim.lr")
    assert "\n" not in line
    assert out.getvalue().count("the step is skipped") == limit
    for name, value in running.model.module.decoders.named_parameters():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("recipe", ["sampled", "printed"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_skipped_step_changes_nothing_and_is_recorded(tmp_path, recipe, clip):
    out = io.StringIO()
    changes = {"ranks.recipe": recipe, "optim.clip": clip, "train.log_every": 4}
    running = trainer(tmp_path, changes, (1, 3, 6), Console(file=out, width=400))
    running.fit()
    records = [record for record in read_log(running.run.log) if "losses" in record]
    assert [(record["step"], record.get("skipped")) for record in records] == [(4, 2), (8, 1)]
    state = load_checkpoint(running.run.checkpoint)
    assert state["skips"] == {"row": 0, "total": 3}
    assert {float(moments["step"]) for moments in state["optimizer"]["state"].values()} == {STEPS - 3.0}
    assert "step 3: the gradient is NaN or Inf; all losses are finite ('taxibj': training sample" in out.getvalue()
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_the_ranks_go_on_as_if_a_skipped_step_had_not_been(tmp_path):
    layers = trainer(tmp_path).ranks
    other = trainer(tmp_path / "other").ranks
    for skip in (1.0, 0.0, 0.0, 1.0, 0.0):
        for ranks in (layers, other):
            for place, rank in enumerate(ranks.ranks):
                rank.grad = torch.full_like(rank, place + 1.0) * torch.arange(rank.numel()).view_as(rank)
        if not skip:
            other.end_step()
        else:
            layers.ranks[0].grad.fill_(math.nan)
        layers.end_step(torch.tensor(skip))
    for mine, expected in zip(layers.ranks, other.ranks, strict=True):
        assert torch.equal(mine, expected)


def test_steps_that_are_not_in_a_row_do_not_stop_a_run(tmp_path):
    running = trainer(tmp_path, {"train.skip_limit": 1}, (1, 3, 5, 7))
    running.fit()
    assert running.account.skips.total == 4
    with pytest.raises(TrainingError, match=r"step 6: the gradient is NaN or Inf; .*: 2 such steps in a row"):
        trainer(tmp_path / "row", {"train.skip_limit": 1}, (1, 3, 5, 6)).fit()


@pytest.mark.parametrize("recipe", ["sampled", "printed"])
def test_a_run_that_skips_goes_on_exactly(tmp_path, recipe):
    changes, spoiled = {"ranks.recipe": recipe, "train.log_every": 3}, (1, 2, 5, 6, 7)
    whole = trainer(tmp_path / "whole", changes, spoiled)
    whole.fit()
    expected = load_checkpoint(whole.run.checkpoint)
    for step in (1, 2, 6):
        stopping = trainer(tmp_path / f"{step}", changes, spoiled)
        stopping.stop_at = step
        with pytest.raises(Stopped):
            stopping.fit()
        resumed = trainer(tmp_path / f"{step}", changes, spoiled, resume=True)
        assert resumed.step == step
        resumed.fit()
        found = load_checkpoint(resumed.run.checkpoint)
        for key in ("model", "optimizer", "ranks", "random", "log", "skips"):
            assert_equal(tree_leaves(found[key]), tree_leaves(expected[key]))
        records = [
            [(r["step"], r.get("losses"), r.get("skipped")) for r in read_log(t.run.log)] for t in (resumed, whole)
        ]
        assert records[0] == records[1]


def in_two(rank: int, folder: str) -> None:
    """A step is skipped where the gradient of one of two processes is not finite."""
    from pathlib import Path

    processes = processes_of(rank)
    for strategy in ("ddp", "fsdp"):
        running = trainer(Path(folder) / strategy, SHARED | {"train.strategy": strategy}, processes=processes)

        def spoil(module, inputs, output, running=running):
            if running.step in (1, 13) and processes.rank == 1 and output.requires_grad:
                output.register_hook(lambda gradient: gradient * math.inf)

        running.model.module.trunk.norm_out.register_forward_hook(spoil)
        running.fit()
        assert running.account.skips.total == 2
        ranks = torch.cat(
            [(r.full_tensor() if hasattr(r, "full_tensor") else r).flatten() for r in running.ranks.ranks]
        )
        assert processes.gather(ranks.tolist()) == [ranks.tolist()] * 2
        if processes.first:
            state = load_checkpoint(running.run.checkpoint)
            assert all(torch.isfinite(value).all() for value in state["model"].values())
            records = {r["step"]: r.get("skipped") for r in read_log(running.run.log) if "losses" in r}
            assert {step for step, skipped in records.items() if skipped} == {2, 14}


def test_all_processes_skip_the_same_steps(tmp_path):
    together(in_two, tmp_path)
