"""What tests of a run's folder share: its commands, their one line of refusal, the folder's contents."""

import numpy as np

from support.tiny_run import tiny_config
from unistd.cli import main
from unistd.training.settings import dump_config

COMMANDS = ("evaluate", "report", "resume", "restart")


def words(command, run, tmp_path):
    """The command line for a run."""
    if command in ("resume", "restart"):
        file = tmp_path / "again.yaml"
        file.write_text(dump_config(tiny_config(run.folder)), encoding="utf-8")
        return ["train", "--config", str(file), f"--{command}"]
    if command == "predict":
        np.save(tmp_path / "in.npy", np.zeros((3, 1, 16, 16), np.float32))
        files = ["--input", str(tmp_path / "in.npy"), "--output", str(tmp_path / "out.npy")]
        return [command, str(run.folder), "--task", "kth", *files]
    return [command, str(run.folder)]


def refusal_of(capsys, *arguments):
    """The line with which a command refuses."""
    assert main([str(word) for word in arguments]) == 1
    line = capsys.readouterr().err
    assert line.startswith("unistd: error: ")
    assert line.count("\n") == 1, line
    assert len(line) < 1000
    return line


def contents(run):
    """Its files' bytes."""
    return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"}
