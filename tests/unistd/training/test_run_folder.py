"""Whatever is in the place of a run's files, a run's folder is refused in one line."""

import os
import shutil

import pytest
from support.refusal import assert_refused, run_command
from support.run_folder import COMMANDS, refusal_of, words
from support.special import special

from unistd.cli import main
from unistd.training.run import Run

FILES = ("config.yaml", "checkpoint.pt", "log.jsonl", "metrics.json", "report.html", ".lock")
FOLDERS = ("adapters", "tensorboard")
pytestmark = pytest.mark.timeout(120)


def put(kind, path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    special(f"a {kind}", path)
    if kind == "folder":
        (path / "precious").write_text("mine")


KINDS = ("named pipe", "socket", "folder", "link to nothing", "link to itself")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_no_file_where_a_file_was_meant(run, tmp_path, capsys, name, kind, command):
    path = run.folder / name
    put(kind, path)
    before = {entry: os.lstat(entry).st_ino for entry in run.folder.rglob("*")}
    line = refusal_of(capsys, *words(command, run, tmp_path))
    if "link" in kind and name == "config.yaml" and command in ("evaluate", "report"):
        assert "not the folder of a run (no config.yaml in it)" in line
    else:
        assert str(path) in line
        assert f"found a {kind}".replace("itself", "nothing") in line or "config.yaml: a " in line, line
    now = {entry: os.lstat(entry).st_ino for entry in run.folder.rglob("*") if entry.name != ".lock" or name == ".lock"}
    assert now == {entry: before[entry] for entry in now}
    assert before.keys() - now.keys() <= {run.folder / ".lock"}


@pytest.mark.parametrize("kind", ["file", *(kind for kind in KINDS if kind != "folder")])
@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_where_a_folder_was_meant(run, tmp_path, capsys, name, kind):
    path = run.folder / name
    put(kind, path)
    for command in COMMANDS:
        line = refusal_of(capsys, *words(command, run, tmp_path))
        assert f"{path}: expected a folder or nothing, found a {kind}".replace("itself", "nothing") in line
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.yaml", "checkpoint.pt"])
def test_prediction_never_waits_for_a_pipe(run, tmp_path, name, kind):
    arguments = words("predict", run, tmp_path)
    put(kind, run.folder / name)
    assert_refused(run_command(*arguments), str(run.folder), name)


@pytest.mark.parametrize("kind", ["named pipe", "file", "link to nothing", "link to itself", "socket"])
def test_no_folder_at_all(tmp_path, capsys, kind):
    put(kind, tmp_path / "run")
    for command in COMMANDS:
        assert str(tmp_path / "run") in refusal_of(capsys, *words(command, Run(tmp_path / "run"), tmp_path))


@pytest.mark.parametrize("name", FILES[:-1])
def test_huge_file_is_not_read_whole(run, name):
    path = run.folder / name
    path.write_bytes(b"")
    os.truncate(path, 3 << 30)
    (run.folder / "metrics.json").touch()
    if name == "report.html":  # which nobody reads
        return
    assert_refused(run_command("report", run.folder), str(path))


def test_files_of_others_survive_a_restart(run, tmp_path):
    mine = [run.adapters / "notes.txt", run.tensorboard / "notes.txt", run.folder / "notes.txt"]
    for path in mine:
        path.write_text("mine")
    events = set(run.tensorboard.iterdir())
    assert main(words("restart", run, tmp_path)) == 0
    assert all(path.read_text() == "mine" for path in mine)
    assert len(set(run.tensorboard.iterdir())) == len(events)


def test_leftovers_of_a_killed_process_are_removed(run):
    for name in (".unistd-1-abc.tmp", ".unistd-99-0123.tmp"):
        (run.folder / name).write_text("half")
    (run.folder / "mine.tmp").write_text("mine")
    (run.adapters / "adapters.json.1-2.new").write_text("half")
    assert main(["evaluate", str(run.folder)]) == 0
    assert not list(run.adapters.glob("*.new"))
    assert sorted(path.name for path in run.folder.iterdir() if "tmp" in path.name) == ["mine.tmp"]
