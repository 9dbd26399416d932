"""Tiny trainings in two processes that share each batch, and in one, to be compared."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from support.processes import WORLD
from support.tiny_run import tiny_config
from unistd.training import trainer as trainer_module
from unistd.training.log import read_log
from unistd.training.processes import ALONE, Processes
from unistd.training.run import Run
from unistd.training.trainer import Trainer

# three samples of two of three tasks in a pass: a process has none of one of them, and some task is in no process
SHARED = {"train.batch_size": 3, "train.tasks_per_step": 2, "train.accumulate": 2, "train.epoch_samples": 42}
SHARED |= {"train.epochs": 2, "ranks.epochs": 1, "data.val_samples": 3}
STEPS, HALF = 22, 11  # ranks are frozen after HALF steps


def processes_of(rank: int) -> Processes:
    """That one of `WORLD`, in the environment as `torchrun` would have it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    os.environ |= dict(zip(names, map(str, (rank, WORLD, rank, WORLD)), strict=True))
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "test"}
    return Processes.of_environment()


def train(folder: Path, changes: dict[str, object], processes: Processes = ALONE, resume: bool = False) -> Trainer:
    """Trains the run in `folder` to its end; each checkpoint is kept as STEP.pt as well."""
    run = Run(folder)
    folder.mkdir(exist_ok=True)
    trainer = Trainer(tiny_config(folder, changes), run, Console(file=io.StringIO()), resume, processes)
    save = trainer.save

    def keeping(log=None, **options) -> None:
        save(log, **options)
        if processes.first:
            shutil.copy(run.checkpoint, folder / f"{trainer.step}.pt")

    trainer.save = keeping
    trainer.fit()
    return trainer


@contextmanager
def frozen_trunk() -> Iterator[None]:
    """Inside `with`, trunks that are trained learn by their adapters alone, as one that was read from a file."""
    build = trainer_module.build_model

    def frozen(*arguments, **options):
        model = build(*arguments, **options)
        for name, parameter in model.trunk.named_parameters():
            learns = ("lora_", "rank", "router", "temporal")
            parameter.requires_grad_(any(word in name for word in learns))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "build_model", frozen)
        yield


def half_way(folder: Path, copy: Path) -> Path:
    """A copy of a run as it was after HALF steps."""
    copy.mkdir()
    shutil.copy(folder / f"{HALF}.pt", Run(copy).checkpoint)
    shutil.copy(Run(folder).log, Run(copy).log)
    return copy


def assert_same_course(one: Path, other: Path) -> None:
    """Two runs whose losses, ranks and held-out results are the same up to the order of sums."""
    records, expected = read_log(Run(one).log), read_log(Run(other).log)
    assert [(record["step"], record.keys()) for record in records] == [
        (record["step"], record.keys()) for record in expected
    ]
    for record, other_one in zip(records, expected, strict=True):
        if "losses" in record:
            assert record["losses"] == pytest.approx(other_one["losses"], abs=1e-6, rel=1e-4)
            for name in ("rank_mean", "rank_spread", "lr", "window"):
                assert record[name] == pytest.approx(other_one[name], abs=1e-5)
        for task, results in record.get("val", {}).items():
            for forecaster, values in results.items():
                assert_close(values, other_one["val"][task][forecaster], 1e-3)


def assert_close(values: dict[str, float | None], expected: dict[str, float | None], rel: float) -> None:
    """Values by name, of which some may be None in both."""
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value == expected[name] or value == pytest.approx(expected[name], rel=rel, abs=1e-6), name
