"""Runs of two processes of which one, both or the program that started them are killed, and that go on: every file but
times is as if nobody had been. One that hangs ends its job. Minutes; `make test-faults` runs it.
"""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support.killing import NAME, left, new_run

KILLS, CHAINS = 5, 4  # of one run, and such runs
VICTIMS = ("process 0", "process 1", "both", "starter")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
MARK = "UNISTD_TEST_JOB"  # in the environment of all processes of a job
STARTS = 6.0  # seconds, about
ENDS = 120  # seconds in which all processes of a job are gone, twice what is promised of an idle machine


class Job:
    """`unistd train --resume` by two processes; its output goes to files, which an orphan does not keep open for us."""

    def __init__(self, folder: Path, torchrun: bool) -> None:
        self.mark, self.log = f"{folder}-{random.random()}", folder / NAME / "log.jsonl"
        self._errors = folder.parent / "errors"
        words = [*(TORCHRUN if torchrun else ()), "-m", "unistd", "train", "--config", "tiny.yaml", "--resume"]
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with self._errors.open("w") as errors, (folder.parent / "output").open("w") as output:
            self.starter = psutil.Popen(
                [sys.executable, *words], cwd=folder, env=environment, stdout=output, stderr=errors
            )

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def processes(self) -> list[psutil.Process]:
        """The two, by rank, where they have been started yet."""
        with suppress(psutil.NoSuchProcess):
            found = [child for child in self.starter.children() if "RANK" in child.environ()]
            return sorted(found, key=lambda process: int(process.environ()["RANK"]))
        return []

    def wait_for_step(self, step: int) -> None:
        """Until the run's log has come that far, or the job is over."""
        while self.starter.poll() is None and _logged(self.log) < step:
            time.sleep(0.01)

    def kill(self, victim: str) -> bool:
        """Kills it as soon as it is there; false where the job was over before."""
        while self.starter.poll() is None:
            mine = self.processes()
            chosen = {"process 0": mine[:1], "process 1": mine[1:], "both": mine[:2], "starter": [self.starter]}[victim]
            if len(chosen) == 1 + (victim == "both"):
                for process in chosen:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                return True
            time.sleep(0.01)
        return False

    def finish(self, seconds: float = ENDS) -> list[int]:
        """Waits until none of its processes is there any more; those that still are then, which are killed."""
        last = time.monotonic() + seconds
        with suppress(psutil.TimeoutExpired):
            self.starter.wait(seconds)
        while (pids := _marked(self.mark)) and time.monotonic() < last:
            time.sleep(0.2)
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        return pids


def _marked(mark: str) -> list[int]:
    pids, entry = [], f"{MARK}={mark}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            pids += [int(environment.parent.name)] if entry in environment.read_bytes().split(b"\0") else []
    return pids


def _logged(log: Path) -> int:
    """The step of a log's last whole record; -1 where there is none."""
    lines = log.read_text().splitlines() if log.exists() else []
    for line in reversed(lines):
        with suppress(ValueError):
            return json.loads(line)["step"]
    return -1


@contextmanager
def job(folder: Path, torchrun: bool) -> Iterator[Job]:
    running = Job(folder, torchrun)
    try:
        yield running
    finally:
        running.finish(0)


def new(folder: Path) -> Path:
    """A run of two processes that keeps several checkpoints, and that validation ends before its time."""
    changes = {"train.devices": 2, "train.threads": 1, "data.workers": 1, "train.epochs": 40, "ranks.epochs": 6}
    folder.mkdir()
    return new_run(folder / "job", changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that nobody kills."""
    folder = new(tmp_path_factory.mktemp("whole") / "whole")
    with job(folder, torchrun=False) as running:
        assert running.finish() == []
        assert running.starter.returncode == 0, running.errors
    assert "stopped early at step" in (folder.parent / "output").read_text()
    assert len(list((folder / NAME / "checkpoints").glob("step_*"))) >= 2
    assert (folder / NAME / "best.safetensors").exists()
    return left(folder)


def assert_left(folder: Path, expected: dict[str, object]) -> None:
    found = left(folder)
    for name in expected:
        assert found[name] == expected[name], name
    assert found.keys() == expected.keys()  # nothing else is left behind


def killed(folder: Path, torchrun: bool, victim: str, moment: float, steps: int, draw: random.Random) -> bool:
    """Kills a job at a moment: a share of its steps, below 0 while it starts, from 1 on while it evaluates and reports.
    False where it was faster."""
    with job(folder, torchrun) as running:
        if moment < 0 or _logged(running.log) >= steps:  # trained to the end by the one before
            time.sleep(draw.uniform(0.2, 1.2) * STARTS)
        else:
            running.wait_for_step(min(int(moment * steps), steps))
            time.sleep(draw.uniform(0, 0.05 if moment < 1 else 1.0))
        was_there, begin = running.kill(victim), time.monotonic()
        assert running.finish() == [], (moment, victim, was_there, running.errors)
        lines = [line for line in running.errors.splitlines() if line.startswith("unistd: ")]
        what = f"{victim} {'killed' if was_there else 'was not there'}"
        print(f"{moment:.2f} of its steps: {what}, all gone in {time.monotonic() - begin:.0f} s: {lines}")
        assert "Traceback" not in running.errors or torchrun, running.errors
        assert len(lines) <= 1, running.errors
        if was_there and victim.startswith("process") and running.starter.returncode and not torchrun:
            assert f"{victim} of 2 (counted from 0" in lines[0], running.errors
        assert was_there or running.starter.returncode == 0, running.errors
        return was_there


@pytest.mark.parametrize("torchrun", [False, True], ids=["train.devices", "torchrun"])
@pytest.mark.parametrize("seed", range(CHAINS // 2))
def test_killed_again_and_again(seed, torchrun, whole, tmp_path):
    draw = random.Random(f"{seed} {torchrun}")
    folder = new(tmp_path / "killed")
    moments = sorted(draw.uniform(-0.2, 1.1) for _ in range(KILLS))
    victims = [*draw.sample(VICTIMS, len(VICTIMS)), draw.choice(VICTIMS)]
    for moment, victim in zip(moments, victims, strict=True):
        while not killed(folder, torchrun, victim, moment, whole["log.jsonl"][-1]["step"], draw):
            assert_left(folder, whole)
            shutil.rmtree(folder / NAME)
    with job(folder, torchrun) as running:
        assert running.finish() == []
        assert running.starter.returncode == 0, running.errors
    assert_left(folder, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_ends_the_job_and_is_named(rank, tmp_path):
    folder = new(tmp_path / "hanging")
    with job(folder, torchrun=False) as running:
        running.wait_for_step(3)
        running.processes()[rank].suspend()
        assert running.finish(60) == [], running.errors
        assert running.starter.returncode == 1
        lines = [line for line in running.errors.splitlines() if line.startswith("unistd: ")]
    expected = f"unistd: error: process {rank} of 2 shows no sign of life any more; `--resume` continues"
    assert lines == [expected], running.errors
