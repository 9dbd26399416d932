"""Jobs of two processes, by `torchrun` and by `train.devices=2`: one output, one line at the end, no process left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.run_folder import refusal_of
from support.tiny_run import tiny_config
from torch.distributed import TCPStore

from unistd.training.checkpoint import load_checkpoint
from unistd.training.run import Run
from unistd.training.settings import dump_config

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ENDLESS = ("train.epochs=10000", "data.val_samples=0")


@contextmanager
def started(folder: Path, *arguments: str, torchrun: bool = False) -> Iterator[subprocess.Popen]:
    """`unistd train` of the tiny run in `folder` by two processes."""
    file = folder.with_suffix(".yaml")
    file.write_text(dump_config(tiny_config(folder, {"train.threads": 1})))
    words = ["-m", "unistd", "train", "--config", str(file), *arguments]
    words = [*TORCHRUN, *words] if torchrun else [*words, "train.devices=2"]
    pipe = subprocess.PIPE
    job = subprocess.Popen(
        [sys.executable, *words], stdout=pipe, stderr=pipe, text=True, env=os.environ | {"COLUMNS": "120"}
    )
    try:
        yield job
    finally:
        for process in (*psutil.Process(job.pid).children(), job) if job.poll() is None else ():
            process.kill()
        job.communicate()


def processes_in_training(job: subprocess.Popen, folder: Path) -> list[psutil.Process]:
    """The two, by rank, once they have taken some steps."""
    last = time.monotonic() + 60
    while not (Run(folder).log.exists() and Run(folder).log.stat().st_size > 500):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < last
        time.sleep(0.1)
    return sorted(psutil.Process(job.pid).children(), key=lambda process: int(process.environ()["RANK"]))


def assert_gone(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, timeout=5)[1] == []


def test_torchrun_gives_what_one_process_gives(finished_run, tmp_path):
    folder = tmp_path / "run"
    with started(folder, torchrun=True) as job:
        output, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert "unistd" not in errors
    assert output.count("8 steps in 4 epochs") == output.count("report:") == 1, output
    found, expected = (json.loads(Run(run).metrics.read_text()) for run in (folder, finished_run))
    for task, results in expected["tasks"].items():
        assert found["tasks"][task]["model"]["mse"] == pytest.approx(results["model"]["mse"], rel=1e-3)
        assert found["tasks"][task]["linear"] == pytest.approx(results["linear"], rel=1e-6)
    assert found["samples"] == expected["samples"]
    others = {"exports"}  # of tests that share the finished run
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished_run.iterdir()} - others


@pytest.mark.parametrize("torchrun", [False, True], ids=["train.devices", "torchrun"])
def test_a_process_that_is_killed_ends_the_job_and_is_named(tmp_path, torchrun):
    folder = tmp_path / "run"
    with started(folder, *ENDLESS, torchrun=torchrun) as job:
        processes = processes_in_training(job, folder)
        processes[1].kill()
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("unistd: ")]
    assert len(lines) == 1, errors
    assert "error: process 1 of 2 (counted from 0" in lines[0]
    assert torchrun or errors.count("\n") == 1
    assert_gone(processes)


def test_a_signal_stops_all_at_the_same_step_and_saves_once(tmp_path):
    folder = tmp_path / "run"
    with started(folder, *ENDLESS) as job:
        processes = processes_in_training(job, folder)
        processes[1].send_signal(signal.SIGTERM)  # whichever it is sent to
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM
    step = load_checkpoint(Run(folder).checkpoint)["step"]
    assert errors == f"unistd: stopped at step {step} of 20000, checkpoint saved; `--resume` continues\n"
    assert_gone(processes)


def test_an_error_of_all_is_said_once(tmp_path):
    with started(tmp_path / "run", "data.root=/nowhere") as job:
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert errors == "unistd: error: /nowhere: no such folder\n"
    assert not (tmp_path / "run").exists()


def test_a_command_of_one_process_is_not_done_by_two():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    command = [sys.executable, "-m", "unistd", "tasks"]
    done = subprocess.run(command, env=os.environ | job, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "unistd: error: tasks takes one process, 2 were started: leave torchrun out\n"


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        (["train.devices=4"], "train.batch_size is 2: of 3 tasks these are 6 samples a pass, expected a multiple of 4"),
        (["train.devices=2", "train.nodes=2"], "expected a multiple of 4, the number of processes"),
        (["train.devices=2", "train.tasks_per_step=1", "train.batch_size=3"], "of 1 tasks these are 3 samples a pass"),
        (["train.devices=1000", "train.batch_size=1000"], "train.devices is 1000, but this machine has"),
        (["train.nodes=2"], "train.nodes is 2: the environment lacks NODE_RANK, MASTER_ADDR, MASTER_PORT"),
        (["train.devices=0"], "train.devices"),
        (["train.devices=two"], "train.devices"),
        (["train.accumulate=0"], "train.accumulate"),
        (["train.strategy=zero"], "train.strategy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shared_is_said_before_the_start(tmp_path, capsys, overrides, culprit):
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run")))
    assert culprit in refusal_of(capsys, "train", "--config", file, *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("NODE_RANK", "2"), ("NODE_RANK", "-1"), ("NODE_RANK", "first"), ("MASTER_PORT", "0"), ("MASTER_PORT", "65536")],
)
def test_a_machine_that_does_not_know_its_place_says_so(tmp_path, capsys, monkeypatch, variable, value):
    for name, right in (("NODE_RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, right)
    monkeypatch.setenv(variable, value)
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run")))
    line = refusal_of(capsys, "train", "--config", file, "train.nodes=2")
    assert f"{variable} in the environment: expected a whole number from " in line
