"""Runs that are killed, stopped, robbed of their output or of a worker: one line, the right status, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.killing import Kill, command, left, living, new_run, start
from support.refusal import Try

from unistd.cli import main
from unistd.training.checkpoint import load_checkpoint

TRAINER = "unistd.training.trainer:Trainer"
KILLED = 2  # seconds for killed processes to be gone; ones that nobody killed look for their master after 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two workers that nobody stopped."""
    folder = new_run(tmp_path_factory.mktemp("whole") / "whole", {"data.workers": 2})
    outcome = start(folder).finish(60)
    assert outcome.status == 0, outcome
    return folder


@pytest.fixture
def folder(tmp_path):
    return new_run(tmp_path / "run", {"data.workers": 2})


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def assert_one_line(outcome, status, *pieces):
    assert outcome.status == status, outcome
    assert outcome.errors.startswith("unistd: "), outcome
    assert outcome.errors.count("\n") == 1, outcome.errors
    for piece in pieces:
        assert piece in outcome.errors


@pytest.mark.parametrize(
    "kill",
    [
        Kill("unistd.training.log:RunLog._write", 2, torn=True),  # before the first checkpoint
        Kill("torch:save", 2, torn=True),
        Kill("unistd.training.evaluate:repeat_last", 5, signum=signal.SIGTERM),  # in the middle of a validation
    ],
    ids=str,
)
def test_a_killed_run_ends_as_if_it_had_not_been(folder, whole, kill):
    killed = start(folder, kill)
    outcome = killed.finish(60)
    if kill.signum == signal.SIGKILL:
        assert outcome.status == -signal.SIGKILL, outcome
    else:
        assert_one_line(outcome, 143, "stopped at step 4 of 8, checkpoint saved; `--resume` continues")
        assert load_checkpoint(folder / "run/checkpoint.pt")["step"] == 4
    again = start(folder).finish(60)
    assert (again.status, again.errors) == (0, ""), again
    assert left(folder) == left(whole)
    assert living(killed.pid) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_every_process_stop_training_with_a_checkpoint(tmp_path, signum):
    folder = new_run(tmp_path / "long", {"data.workers": 2, "train.epochs": 4000, "train.patience": None})
    running = start(folder)
    wait_for(folder / "run/checkpoint.pt")
    running.send(signum, group=True)
    assert_one_line(running.finish(20), 128 + signum, "stopped at step ", "of 8000, checkpoint saved")
    assert living(running.pid, KILLED) == []


def test_a_second_ctrl_c_ends_at_once_and_keeps_the_last_checkpoint(folder):
    # the first comes within a step, the second while the checkpoint for it is written
    running = start(folder, Kill(f"{TRAINER}._clip_gradients", 3, signum=signal.SIGINT), SAVING)
    assert_one_line(running.finish(20), 130, "stopped by SIGINT; `--resume` continues")
    assert load_checkpoint(folder / "run/checkpoint.pt")["step"] == 2
    assert living(running.pid, KILLED) == []


def test_a_second_signal_while_the_first_is_answered_ends_at_once(copy):
    # the first comes within a batch, the second while the loading processes are sent home for it
    within = Kill("unistd.training.evaluate:repeat_last", signum=signal.SIGINT)
    running = start(copy, within, SENT_HOME, words="evaluate run")
    assert_one_line(running.finish(20), 143, "stopped by SIGTERM\n")
    assert living(running.pid, KILLED) == []


def in_a_finalizer(root, others):
    class Odd:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    Odd()
    time.sleep(20)


def turned_into_another_error(root, others):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        raise RuntimeError("no rows") from None


@pytest.mark.parametrize("task_table", [in_a_finalizer, turned_into_another_error])
def test_a_signal_that_a_library_would_swallow(tmp_path, task_table):
    assert_one_line(Try(with_table, task_table, str(tmp_path)).finish(10), 130, "stopped by SIGINT\n")


def with_table(task_table, folder):
    import unistd.commands

    unistd.commands.task_table = task_table
    return command(folder, ["tasks"])


def test_a_command_runs_in_a_thread_too(tmp_path):
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(main, ["report", str(tmp_path)]).result() == 1


SAVING = Kill("torch:save", 2, signum=signal.SIGINT)
SENT_HOME = Kill("torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._shutdown_workers", signum=signal.SIGTERM)
MOMENTS = {
    "building": (Kill(f"{TRAINER}.__init__"), "train --config tiny.yaml --restart"),
    "baselines": (Kill("unistd.training.trainer:repeat_last_errors"), "train --config tiny.yaml --restart"),
    "evaluate": (Kill("unistd.training.evaluate:repeat_last", 3), "evaluate run"),
    "metrics": (Kill("os:replace", of="metrics.json"), "evaluate run"),
    "report": (Kill("unistd.report.page:example", 2), "report run"),
    "page": (Kill("os:replace", of="report.html"), "report run"),
    "predict": (Kill("os:replace", of="out.npy"), "predict run --task kth --input in.npy --output out.npy"),
    "tasks": (Kill("unistd.commands:task_table"), "tasks"),
}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("kill", "words"), MOMENTS.values(), ids=MOMENTS)
def test_signals_end_every_command_and_leave_its_files_whole(copy, kill, words, signum):
    np.save(copy / "in.npy", np.zeros((3, 1, 16, 16), np.float32))
    before = contents(copy)
    running = start(copy, Kill(**vars(kill) | {"signum": signum}), words=words)
    assert_one_line(running.finish(20), 128 + signum, f"stopped by {signal.Signals(signum).name}")
    assert contents(copy) == before
    assert living(running.pid, KILLED) == []


@pytest.mark.parametrize("seconds", [0.2, 0.8, 1.6])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_it_starts(seconds, signum):
    words = [sys.executable, "-c", "import unistd.cli as c, sys; print(flush=True); sys.exit(c.main(['tasks']))"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()  # from here on, imports of seconds
    time.sleep(seconds)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=20)
    if process.returncode != 0:  # else it had been faster
        assert process.returncode == 128 + signum, errors
        assert errors == f"unistd: stopped by {signal.Signals(signum).name}\n"


def test_nohup_is_left_in_force(copy):
    outcome = Try(ignoring_hangups, str(copy)).finish(20)
    assert (outcome.status, outcome.errors) == (0, ""), outcome


def ignoring_hangups(folder):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hangup = Kill("unistd.training.evaluate:repeat_last", 3, signum=signal.SIGHUP)
    return command(folder, ["evaluate", "run"], [hangup])


@pytest.mark.parametrize(
    ("kill", "words", "steps"),
    [
        (
            Kill(f"{TRAINER}._train_step", 3, worker=True),
            "train --config tiny.yaml --resume",
            (2, 4, 6),
        ),  # batches loaded before are trained on
        (Kill("unistd.training.evaluate:repeat_last", 5, worker=True), "train --config tiny.yaml --resume", (2,)),
        (Kill("unistd.training.evaluate:repeat_last", 1, worker=True), "evaluate run", (8,)),
    ],
    ids=["training", "validation", "evaluation"],
)
def test_a_worker_that_is_killed_is_one_line(whole, folder, kill, words, steps):
    if words.startswith("evaluate"):
        shutil.copytree(whole / "run", folder / "run")
    running = start(folder, kill, words=words)
    outcome = running.finish(20)
    assert_one_line(outcome, 1, "error: a data loading worker (pid ", ") was killed by signal 9, SIGKILL", "memory")
    assert living(running.pid, KILLED) == []
    assert load_checkpoint(folder / "run/checkpoint.pt")["step"] in steps


def test_a_sample_that_cannot_be_read_is_one_line_that_names_its_file(folder):
    running = Try(spoiled, str(folder))
    assert_one_line(running.finish(20), 1, "error: digits.h5: row 5 holds -1,\\nexpected counts >= 0\n")
    assert living(running.pid, KILLED) == []


def spoiled(folder):
    from unistd.tasks import DataFileError
    from unistd.tasks.data import SequenceDataset

    read = SequenceDataset.__getitem__

    def fail(dataset, index):
        if dataset.spec.name == "kth" and index == 5:
            raise DataFileError("digits.h5: row 5 holds -1,\nexpected counts >= 0")
        return read(dataset, index)

    # not before the loop, where the first samples are looked at
    SequenceDataset.__getitem__ = fail
    import unistd.training.trainer as trainer

    trainer.BASELINE_SAMPLES = 2
    return command(folder, ["train", "--config", "tiny.yaml"])


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def closed():
    os.close(1)
    sys.stdout = None


def with_output(output, folder, words):
    output()
    return command(folder, words.split())


@pytest.mark.parametrize(
    ("output", "status", "pieces"),
    [
        (broken_pipe, 141, "(standard output: Broken pipe)"),
        (full_disk, 1, "(standard output: No space left on device)"),
    ],
)
def test_training_whose_output_is_lost_stops_and_goes_on(folder, whole, output, status, pieces):
    words = "train --config tiny.yaml --resume"
    outcome = Try(with_output, output, str(folder), words).finish(20)
    assert_one_line(outcome, status, "stopped at step 0 of 8, checkpoint saved", pieces, "`--resume` continues")
    if output is broken_pipe:
        assert Try(with_output, closed, str(folder), words).finish(60).status == 0
        assert left(folder) == left(whole)


@pytest.mark.parametrize("words", ["tasks", "train --help", "evaluate run"])
def test_other_output_that_is_lost(copy, words):
    outcome = Try(with_output, broken_pipe, str(copy), words).finish(20)
    assert (outcome.status, outcome.errors) == (141, ""), outcome
    assert_one_line(
        Try(with_output, full_disk, str(copy), words).finish(20), 1, "error: standard output: No space left"
    )
    outcome = Try(with_output, closed, str(copy), words).finish(20)
    assert (outcome.status, outcome.errors) == (0, ""), outcome


def test_closed_streams_are_opened_on_nothing():
    program = """if True:
        from unistd.output import open_standard_streams
        open_standard_streams()
        with open("/dev/null") as file:
            assert file.fileno() > 2
        print("lost")
    """
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(closing, timeout=20).returncode == 0


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(file: Path) -> None:
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end, f"no {file}"
        time.sleep(0.02)
