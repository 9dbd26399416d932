"""train.compile: the steps of the model as it is written, few compilations, checkpoints of the same names."""

import io
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.many_processes import SHARED, assert_same_course, processes_of, train
from support.processes import together
from support.stopping import Stopping
from support.tiny_run import tiny_config
from torch._dynamo.utils import counters

from unistd.training import trainer as training
from unistd.training.checkpoint import load_checkpoint
from unistd.training.compiling import compile_parts
from unistd.training.errors import TrainingError
from unistd.training.log import read_log
from unistd.training.run import Run
from unistd.training.stop import Stopped

COMPILED = {"train.compile": "default"}
SHORT = SHARED | {"train.epoch_samples": 6, "train.tasks_per_step": 0, "train.accumulate": 1, "train.batch_size": 2}


@pytest.fixture
def quick(monkeypatch):
    """Compiled by all but the last part of the compiler, which takes minutes; the graphs so far are forgotten."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(training, "compile_parts", partial(compile_parts, backend="aot_eager"))


def trainer(folder, changes=None, resume=False):
    folder.mkdir(exist_ok=True)
    return Stopping(tiny_config(folder, changes), Run(folder), Console(file=io.StringIO()), resume)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("changes", [{}, {"train.tasks_per_step": 1, "ranks.recipe": "printed"}], ids=["mixed", "one"])
def test_compiled_steps_are_those_of_the_model_as_written(tmp_path, quick, changes):
    changes = changes | {"train.epochs": 2, "ranks.epochs": 1}
    trainer(tmp_path / "eager", changes).fit()
    assert graphs() == 0
    running = trainer(tmp_path / "compiled", changes | COMPILED)
    running.fit()
    assert graphs() > 0
    assert_same_course(tmp_path / "compiled", tmp_path / "eager")
    mine, plain = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("compiled", "eager"))
    assert mine["model"].keys() == plain["model"].keys()
    assert not any("_orig_mod" in name for name in mine["model"])
    assert torch.equal(mine["random"]["cpu"], plain["random"]["cpu"])


def test_few_compilations_serve_all_tasks_and_steps(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(training, "compile_parts", partial(compile_parts, backend="eager"))  # which is quicker still
    changes = {
        "train.tasks_per_step": 2,
        "train.epochs": 8,
        "ranks.epochs": 4,
        "model.trunk": {"width": 16, "depth": 3, "heads": 2},
    }
    running = trainer(tmp_path, changes | COMPILED | {"data.val_samples": 2})
    running.fit()
    # for each part: once, once more for sizes that change, and for the trunk once its ranks are frozen; each of three
    # tasks has an encoder and a decoder with sizes of their own
    assert 0 < graphs() <= 3 * 3 + 3 * 3 + 4
    before = graphs()
    resumed = trainer(tmp_path, changes | COMPILED | {"train.epochs": 12}, resume=True)
    resumed.fit()
    assert graphs() - before <= 2, "a model of the same sizes"


def test_a_compiled_run_goes_on_exactly_and_without_the_compiler(tmp_path, quick):
    changes = {"train.epochs": 2, "ranks.epochs": 1} | COMPILED
    trainer(tmp_path / "whole", changes).fit()
    for name, after in (("again", changes), ("eager", changes | {"train.compile": None})):
        stopping = trainer(tmp_path / name, changes)
        stopping.stop_at = 3
        with pytest.raises(Stopped):
            stopping.fit()
        resumed = trainer(tmp_path / name, after, resume=True)
        resumed.fit()
    expected = load_checkpoint(tmp_path / "whole/checkpoint.pt")["model"]
    for key, value in load_checkpoint(tmp_path / "again/checkpoint.pt")["model"].items():
        assert torch.equal(value, expected[key]), key
    assert_same_course(tmp_path / "eager", tmp_path / "whole")


def in_two(rank: int, folder: str) -> None:
    processes, folder = processes_of(rank), Path(folder)
    training.compile_parts = partial(compile_parts, backend="eager")
    for strategy in ("ddp", "fsdp"):
        train(folder / strategy, SHORT | COMPILED | {"train.strategy": strategy}, processes)


def test_two_processes_compile_alike(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tmp_path / "one", SHORT)
    together(in_two, tmp_path)
    torch.set_num_threads(threads)
    for strategy in ("ddp", "fsdp"):
        assert_same_course(tmp_path / strategy, tmp_path / "one")


def test_the_whole_compiler_takes_the_same_steps(tmp_path):
    torch.compiler.reset()
    changes = {"tasks": ["enso"], "train.epochs": 1, "ranks.epochs": 1, "data.val_samples": 0}
    changes |= {"task_options": {"enso": {"height": 8, "width": 16, "patch": 4, "frames_in": 3, "frames_out": 4}}}
    trainer(tmp_path / "eager", changes).fit()
    trainer(tmp_path / "compiled", changes | COMPILED).fit()
    mine, plain = (
        [r["losses"]["enso"] for r in read_log(tmp_path / n / "log.jsonl") if "losses" in r]
        for n in ("compiled", "eager")
    )
    assert mine == pytest.approx(plain, rel=1e-4)


def test_a_machine_without_a_compiler_is_told_so(tmp_path, monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(TrainingError, match=r"^train.compile: torch.compile needs a C\+\+ compiler, such as g\+\+"):
        trainer(tmp_path, COMPILED)
