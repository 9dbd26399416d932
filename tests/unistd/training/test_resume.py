"""A run that was stopped and resumed ends with the very bits of one that was not."""

import io
import signal

import pytest
import torch
from rich.console import Console
from support.tiny_run import STEPS, tiny_config

from unistd.files import write_atomically
from unistd.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from unistd.training.evaluate import evaluate, held_out, values_of
from unistd.training.log import read_log
from unistd.training.run import Run, open_run
from unistd.training.settings import dump_config
from unistd.training.stop import Stopped, StopRequest
from unistd.training.trainer import Trainer


class StoppingTrainer(Trainer):
    """Sends itself a signal after a step."""

    stop_at = None
    signum = signal.SIGTERM

    def _train_step(self, *arguments):
        super()._train_step(*arguments)
        if self.step == self.stop_at:
            signal.raise_signal(self.signum)


def trainer(folder, changes=None, resume=False, cls=Trainer):
    folder.mkdir(exist_ok=True)
    return cls(tiny_config(folder, changes), Run(folder), Console(file=io.StringIO()), resume)


def stop_at(folder, step, changes=None, signum=signal.SIGTERM):
    stopping = trainer(folder, changes, cls=StoppingTrainer)
    stopping.stop_at, stopping.signum = step, signum
    with pytest.raises(Stopped, match=f"stopped at step {step} of {STEPS}") as stopped:
        stopping.fit()
    assert stopped.value.signum == signum


def assert_same(left, right, path=""):
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            if path or key not in ("config", "seconds"):
                assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path


@pytest.mark.parametrize("recipe", ["sampled", "printed"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, recipe):
    changes = {"ranks.recipe": recipe}
    whole = trainer(tmp_path / "whole", changes)
    whole.fit()
    expected = load_checkpoint(whole.run.checkpoint)
    assert expected["step"] == STEPS
    # within an epoch of the rank phase, at its last step, and after the ranks are frozen
    for step in (1, 4, 7):
        folder = tmp_path / f"stopped{step}"
        stop_at(folder, step, changes)
        resumed = trainer(folder, changes, resume=True)
        assert resumed.step == step
        resumed.fit()
        assert_same(load_checkpoint(resumed.run.checkpoint), expected)
        kept = [(r["step"], r.get("losses"), r.get("val")) for r in read_log(resumed.run.log)]
        assert kept == [(r["step"], r.get("losses"), r.get("val")) for r in read_log(whole.run.log)]


def test_a_run_stopped_while_its_ranks_are_learned_is_the_model_that_it_was(tmp_path):
    whole = trainer(tmp_path / "whole", {"ranks.window_share": 1.0})
    whole.fit()
    validated = {record["step"]: record["val"] for record in read_log(whole.run.log) if "val" in record}
    stop_at(tmp_path / "stopped", 2, {"ranks.window_share": 1.0})
    (tmp_path / "stopped/config.yaml").write_text(dump_config(whole.config))
    assert [record["step"] for record in read_log(tmp_path / "stopped/log.jsonl")] == [0, 1, 2], "not validated yet"
    _, config, model = open_run(tmp_path / "stopped")
    assert values_of(evaluate(model, held_out(config, "val"), 2)) == validated[2]
    resumed = trainer(tmp_path / "stopped", {"ranks.window_share": 1.0}, resume=True)
    resumed.fit()
    assert {record["step"]: record["val"] for record in read_log(resumed.run.log) if "val" in record} == validated


def test_workers_and_cache_do_not_change_a_run(tmp_path):
    plain = trainer(tmp_path / "plain")
    plain.fit()
    helped = trainer(tmp_path / "helped", {"data.workers": 1, "data.cache": True})
    helped.fit()
    assert_same(load_checkpoint(helped.run.checkpoint), load_checkpoint(plain.run.checkpoint))


def test_keyboard_interrupt_saves_too(tmp_path):
    before = signal.getsignal(signal.SIGINT)  # ignored in what a shell has put into the background
    stop_at(tmp_path, 3, signum=signal.SIGINT)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_second_signal_ends_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_crash_leaves_the_last_checkpoint_and_its_log_is_cut_back(tmp_path):
    class Crashing(Trainer):
        def _train_step(self, *arguments):
            if self.step == 5:
                raise MemoryError
            super()._train_step(*arguments)

    crashing = trainer(tmp_path, cls=Crashing)
    with pytest.raises(MemoryError):
        crashing.fit()
    assert load_checkpoint(crashing.run.checkpoint)["step"] == 4  # the last epoch's end
    assert read_log(crashing.run.log)[-1]["step"] == 5
    resumed = trainer(tmp_path, resume=True)
    resumed.fit()
    steps = [record["step"] for record in read_log(resumed.run.log) if "losses" in record]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optim.lr": 0.5}, "optim.lr"),
        ({"model.hidden": 8}, "model.hidden"),
        ({"tasks": ["kth", "enso", "taxibj"]}, "tasks"),
        ({"task_options.kth": {"height": 32, "width": 16, "patch": 8}}, "task_options.kth.height"),
    ],
)
def test_resuming_another_config_is_an_error(tmp_path, changes, key):
    stop_at(tmp_path, 1)
    with pytest.raises(CheckpointError, match=f"cannot be resumed, the config differs from the run's in '{key}'"):
        trainer(tmp_path, changes, resume=True)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def fail(file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_checkpoints_are_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: no checkpoint here"):
        load_checkpoint(path)
    save_checkpoint(path, {"weights": torch.rand(1000)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text", b"\x80\x02cposix\nsystem\n."):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged checkpoint") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
