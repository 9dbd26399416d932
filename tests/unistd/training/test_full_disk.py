"""A disk that is full leaves the last file whole."""

import errno
import os
import resource

import pytest
import torch
from support.refusal import assert_refused, attempt
from support.run_folder import refusal_of, words
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.files import remove_leftovers, write_atomically
from unistd.training.checkpoint import load_checkpoint
from unistd.training.settings import dump_config

pytestmark = pytest.mark.timeout(120)


def with_limit(size, arguments):
    """The command where no file may grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return main(arguments)


@pytest.mark.parametrize("command", ["restart", "evaluate", "report"])
def test_full_disk_leaves_the_last_file_whole(run, tmp_path, command):
    size = {"restart": 200_000, "evaluate": 500, "report": 50_000}[command]
    name = {"restart": "checkpoint.pt", "evaluate": "metrics.json", "report": "report.html"}[command]
    before = (run.folder / name).read_bytes()
    outcome = attempt(with_limit, size, words(command, run, tmp_path))
    assert_refused(outcome, str(run.folder / name), "File too large")
    assert not [path for path in run.folder.iterdir() if path.name.endswith(".tmp")]
    if command != "restart":  # which had deleted the checkpoint before
        assert (run.folder / name).read_bytes() == before


def test_full_disk_at_a_later_checkpoint(tmp_path, capsys, monkeypatch):
    """The run can go on from the checkpoint before."""
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run")))
    save = torch.save
    saved = []

    def full(state, target):
        saved.append(state["step"])
        if len(saved) == 3:
            target.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, target)

    monkeypatch.setattr(torch, "save", full)
    line = refusal_of(capsys, "train", "--config", file)
    assert f"cannot be written: No space left on device: '{tmp_path}/run/checkpoint.pt'" in line
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert main(["train", "--config", str(file), "--resume"]) == 0


def test_temporary_names_are_the_process_own(tmp_path):
    names = []

    def write(temporary):
        names.append(temporary.name)
        temporary.write_bytes(b"x")

    for _ in range(3):
        write_atomically(tmp_path / ("n" * 250), write)
    assert len(set(names)) == 3
    assert all(f"-{os.getpid()}-" in name for name in names)
    (tmp_path / names[0]).touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 250]
