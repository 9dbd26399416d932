"""Two processes and one run's folder: the second names the folder and the holder."""

import os
import signal
import socket
import time

import pytest
from support.refusal import start
from support.run_folder import COMMANDS, contents, refusal_of, words
from support.tiny_run import tiny_config

from unistd import commands
from unistd.cli import main
from unistd.files import read_text
from unistd.training.lock import RunInUse, locked
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.trainer import Trainer

pytestmark = pytest.mark.timeout(120)


def hold(folder, fork=False):
    """Holds the lock until it is killed; with `fork`, so does a child of it that outlives it, as a worker may."""
    with locked(folder):
        if fork and os.fork() == 0:
            (folder / "child").write_text(str(os.getpid()))
            time.sleep(60)
            os._exit(0)
        (folder / "held").touch()
        time.sleep(60)


def wait_for(path):
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"no {path}")


@pytest.mark.parametrize("command", COMMANDS)
def test_second_process_names_folder_and_holder(run, tmp_path, capsys, command):
    before = contents(run)
    process = start(hold, run.folder)
    try:
        wait_for(run.folder / "held")
        line = refusal_of(capsys, *words(command, run, tmp_path))
        assert f"{run.folder}: in use by process {process.pid} on {socket.gethostname()} since 20" in line
    finally:
        process.kill()
        process.join()
    assert contents(run) == before | {run.folder / "held": b""}


def test_reading_needs_no_lock(run, tmp_path):
    with locked(run.folder):
        assert main(words("predict", run, tmp_path)) == 0


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "with a child that lives on"])
def test_lock_of_a_killed_process_is_free(run, fork):
    process = start(hold, run.folder, fork)
    wait_for(run.folder / ("child" if fork else "held"))
    wait_for(run.folder / "held")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    try:
        assert read_text(run.folder / ".lock").startswith(str(process.pid)), "it had no time to tidy up"
        with locked(run.folder):
            assert read_text(run.folder / ".lock").startswith(f"{os.getpid()}\n")
        assert read_text(run.folder / ".lock") == ""
    finally:
        if fork:
            os.kill(int((run.folder / "child").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("holder", [b"", b"12", b"\xff\xfe", b"a\nb\nc\nd\n" * 1000, b"\n\n\n"], ids=range(5))
def test_lock_file_with_anything_in_it(run, capsys, holder):
    with locked(run.folder):
        (run.folder / ".lock").write_bytes(holder)
        assert "in use by " in refusal_of(capsys, "evaluate", run.folder)


@pytest.mark.parametrize("command", ["resume", "restart"])
def test_training_holds_the_lock_from_its_first_look_to_the_report(run, tmp_path, monkeypatch, command):
    """Between `--restart`'s deletion and the training nobody gets in, nor before the evaluation."""
    checked = []

    def guarded(owner, name):
        function = getattr(owner, name)

        def check(*arguments, **options):
            with pytest.raises(RunInUse), locked(run.folder):
                pass
            checked.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, check)

    for owner, name in (
        (Trainer, "__init__"), (Run, "delete_files"), (commands, "write_text"), (Trainer, "fit"),
        (Trainer, "save_adapters"), (commands, "evaluate_run"),
    ):  # fmt: skip
        guarded(owner, name)
    run.report.unlink()
    assert main(words(command, run, tmp_path)) == 0
    expected = ["__init__", "delete_files", "write_text", "fit", "save_adapters", "evaluate_run"]
    assert checked == [name for name in expected if command == "restart" or name != "delete_files"]
    with locked(run.folder):
        pass


def test_folder_that_came_to_nothing_is_gone_again(tmp_path, capsys):
    file = tmp_path / "new.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "a" / "b", {"data.root": str(tmp_path / "no")})))
    assert f"{tmp_path}/no: no such folder" in refusal_of(capsys, "train", "--config", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.yaml"]
