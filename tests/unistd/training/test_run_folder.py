"""A run's folder: one process at a time, whatever its name, whatever is in the place of its files."""

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from support.refusal import assert_refused, attempt, run_command, start
from support.sockets import make_socket
from support.tiny_run import STEPS, tiny_config

from unistd import commands
from unistd.cli import main
from unistd.files import read_text, remove_leftovers, write_atomically
from unistd.messages import printable
from unistd.training.checkpoint import load_checkpoint
from unistd.training.lock import RunInUse, locked
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.trainer import Trainer

FILES = ("config.yaml", "checkpoint.pt", "log.jsonl", "metrics.json", "report.html", ".lock")
FOLDERS = ("adapters", "tensorboard")
COMMANDS = ("evaluate", "report", "resume", "restart")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run(finished_run, tmp_path):
    return Run(shutil.copytree(finished_run, tmp_path / "copy"))


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


def refusal_of(capsys, arguments):
    assert main([str(word) for word in arguments]) == 1
    line = capsys.readouterr().err
    assert line.startswith("unistd: error: ")
    assert line.count("\n") == 1, line
    assert len(line) < 1000
    return line


def contents(run):
    return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"}


# --- two processes


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
        line = refusal_of(capsys, words(command, run, tmp_path))
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
        assert "in use by " in refusal_of(capsys, ["evaluate", run.folder])


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
    assert f"{tmp_path}/no: no such folder" in refusal_of(capsys, ["train", "--config", file])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.yaml"]


# --- what is in the place of a file


def put(kind, path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        make_socket(path)
    elif kind == "folder":
        path.mkdir()
        (path / "precious").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    elif kind == "link to nothing":
        path.symlink_to(path.parent / "nowhere")
    else:
        path.symlink_to(path.name)


KINDS = ("named pipe", "socket", "folder", "link to nothing", "link to itself")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_no_file_where_a_file_was_meant(run, tmp_path, capsys, name, kind, command):
    path = run.folder / name
    put(kind, path)
    before = {entry: os.lstat(entry).st_ino for entry in run.folder.rglob("*")}
    line = refusal_of(capsys, words(command, run, tmp_path))
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
        line = refusal_of(capsys, words(command, run, tmp_path))
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
        assert str(tmp_path / "run") in refusal_of(capsys, words(command, Run(tmp_path / "run"), tmp_path))


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
    assert main(["evaluate", str(run.folder)]) == 0
    assert sorted(path.name for path in run.folder.iterdir() if "tmp" in path.name) == ["mine.tmp"]


# --- names

NAMES = {
    "brackets": "[red]a[/red] [0-9]* ?",
    "markup": "[/] [bold]",
    "quotes": 'it\'s "quoted" `x` $HOME',
    "percent": "50% %s %(x)s {y}",
    "spaces": "  a  b ",
    "line break": "a\nb\r\tc",
    "leading dash": "-x",
    "emoji code": ":smile: é ü 日本",
    "hash": "#a & b; c",
    "backslash": "a\\nb\\",
    "long": "x" * 250,
    "control": "a\x1b[31mb\x07",
    "dots": "...",
}


@pytest.mark.parametrize("name", NAMES)
def test_folder_of_any_name(run, tmp_path, capsys, name):
    folder = tmp_path / NAMES[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    run.folder.rename(folder)
    for command in ("evaluate", "report", "predict"):
        assert main(words(command, Run(folder), tmp_path)) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert f"report: {printable(str(folder / 'report.html'))}\n" in shown
    (folder / "checkpoint.pt").write_bytes(b"x")
    line = refusal_of(capsys, ["evaluate", folder])
    assert f"{printable(str(folder))}/checkpoint.pt: damaged checkpoint" in line


def test_training_in_a_folder_of_any_name(tmp_path, capsys):
    folder = tmp_path / ("".join(NAMES[name] for name in ("brackets", "quotes", "percent", "line break", "emoji code")))
    file = tmp_path / "config.yml"
    file.write_text(dump_config(tiny_config(folder)), encoding="utf-8")
    assert main(["train", "--config", str(file)]) == 0, capsys.readouterr().err
    assert main(["train", "--config", str(file), "--resume"]) == 0
    assert f"{printable(str(folder))} is complete" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 256, "x" * 5000, "a/" * 3000, "a\0b"], ids=["256", "5000", "deep", "nul"])
def test_name_that_no_folder_can_have(tmp_path, capsys, name):
    for arguments in (["evaluate", f"{tmp_path}/{name}"], ["train", "--config", "demo", f"run={tmp_path}/{name}"]):
        refusal_of(capsys, arguments)
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text_and_locales_without_signs(run, tmp_path):
    """As a process of its own, in the C locale, with a folder whose name is not UTF-8."""
    folder = os.fsencode(tmp_path) + b"/\xff\xfe\xc3"
    os.rename(run.folder, folder)
    environment = os.environ | {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    program = (
        "import sys; from unistd.cli import main; sys.exit(main(['evaluate', sys.argv[1]]) or"
        " main(['report', sys.argv[1]]) or 7 * (main(['evaluate', sys.argv[1] + 'x']) == 1))"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], env=environment, capture_output=True, timeout=110)
    assert done.returncode == 7, done.stderr
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert "·".encode() in Path(os.fsdecode(folder) + "/report.html").read_bytes()


# --- moved, copied, without what is not needed


def test_folder_that_was_moved(run, tmp_path, capsys):
    moved = Run(run.folder.rename(tmp_path / "moved"))
    for command in ("evaluate", "report", "predict"):
        assert main(words(command, moved, tmp_path)) == 0
    capsys.readouterr()
    line = refusal_of(capsys, ["train", "--config", moved.config, "--resume"])
    assert f"{moved.config}: its run was moved here from" in line
    moved.report.unlink()
    assert main(["train", "--config", str(moved.config), "--resume", f"run={moved.folder}"]) == 0
    assert moved.report.exists()


def test_pretrained_file_is_needed_at_the_start_alone(tmp_path, capsys):
    from safetensors.torch import save_file

    from unistd.model.config import TrunkConfig
    from unistd.model.weights import expected_shapes

    torch.manual_seed(1)
    shapes = expected_shapes(TrunkConfig(width=16, depth=1, heads=2, mlp_ratio=2.0))
    renamed = {"attention.": "attn.", "norm_out": "norm"}
    weights = {}
    for name, shape in shapes.items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        weights[name] = torch.randn(shape) * 0.1
    file = tmp_path / "vit.safetensors"
    save_file(weights, file)
    config = tiny_config(tmp_path / "run", {"model.pretrained": str(file)})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    step = Trainer._train_step

    def stopping(self, *arguments):
        step(self, *arguments)
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 128 + signal.SIGTERM
    frozen = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["model"]["trunk.blocks.0.mlp.fc1.weight"]
    file.unlink()
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--resume"]) == 0
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == STEPS
    assert torch.equal(state["model"]["trunk.blocks.0.mlp.fc1.weight"], frozen)
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def as_nobody(arguments):
    """The command by a user who may write nowhere."""
    os.seteuid(65534)
    try:
        return main(arguments)
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("command", COMMANDS)
def test_folder_that_may_only_be_read(run, tmp_path, command):
    arguments = words(command, run, tmp_path)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    outcome = attempt(as_nobody, arguments)
    assert_refused(outcome, str(run.folder), "Permission denied")


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_forecast_from_a_folder_that_may_only_be_read(run, tmp_path):
    arguments = words("predict", run, tmp_path)
    tmp_path.chmod(0o777)
    run.folder.chmod(0o555)
    for path in tmp_path.parents:
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    outcome = attempt(as_nobody, arguments)
    assert outcome.status == 0, outcome
    assert (tmp_path / "out.npy").exists()


# --- a disk that is full


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
    line = refusal_of(capsys, ["train", "--config", file])
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


# --- metrics.json and log.jsonl

RECORD = {"step": 8, "losses": {"kth": 0.1}}
METRICS = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "NaN": '{"tasks": NaN}',
    "no tasks": "{}",
    "tasks are a list": '{"tasks": []}',
    "other tasks": '{"tasks": {"bair": {}}}',
    "deep": "[" * 100_000,
    "not UTF-8": b"\xff\xfe{}",
}


@pytest.mark.parametrize("case", METRICS)
def test_damaged_metrics_are_named(run, capsys, case):
    text = METRICS[case]
    run.metrics.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert f"{run.metrics}: " in refusal_of(capsys, ["report", run.folder])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("tasks", "kth", "model", "mse"), "0.1"),
        (("tasks", "kth", "model", "mse"), None),
        (("tasks", "kth", "model", "mse"), -1.0),
        (("tasks", "kth", "model", "psnr"), float("nan")),
        (("tasks", "kth", "repeat_last", "ssim"), float("inf")),
        (("tasks", "kth", "repeat_last"), {}),
        (("tasks", "kth", "other"), {}),
        (("tasks", "bair"), {}),
        (("step",), 4),
        (("step",), "8"),
        (("extra",), 1),
    ],
)
def test_metrics_of_wrong_values_are_named(run, capsys, keys, value):
    record = json.loads(run.metrics.read_text())
    *parents, last = keys
    tree = record
    for key in parents:
        tree = tree[key]
    tree[last] = value
    run.metrics.write_text(json.dumps(record))
    line = refusal_of(capsys, ["report", run.folder])
    assert f"{run.metrics}: " in line
    assert last in line


def test_metrics_of_an_earlier_release(run):
    record = json.loads(run.metrics.read_text())
    del record["step"]
    run.metrics.write_text(json.dumps(record))
    assert main(["report", str(run.folder)]) == 0


LINES = {
    "no JSON": b"{\n",
    "no record": b"[]\n",
    "no step": b'{"losses": {}}\n',
    "step of text": b'{"step": "1"}\n',
    "unknown task": b'{"step": 1, "losses": {"bair": 0.1}}\n',
    "loss of text": b'{"step": 1, "losses": {"kth": "0.1"}}\n',
    "nan loss": b'{"step": 1, "losses": {"kth": NaN}}\n',
    "no window": b'{"step": 1, "rank_spread": 0.1}\n',
    "baseline of 0": b'{"step": 0, "baselines": {"taxibj": 0.0, "kth": 1.0, "enso": 1.0}}\n',
    "val of one task": b'{"step": 1, "val": {"kth": {"model": {"mse": 0.1}, "repeat_last": {"mse": 0.1}}}}\n',
    "val without mse": b'{"step": 1, "val": {"kth": {"model": {}, "repeat_last": {}}}}\n',
    "not UTF-8": b'{"step": "\xff"}\n',
    "deep": b"[" * 100_000 + b"\n",
    "zeros": b"\0\0\0\n",
}


@pytest.mark.parametrize("case", LINES)
def test_damaged_log_is_named(run, capsys, case):
    first, *rest = run.log.read_bytes().splitlines(keepends=True)
    run.log.write_bytes(b"".join([first, LINES[case], *rest]))
    line = refusal_of(capsys, ["report", run.folder])
    assert f"{run.log}: line 2 is no record of" in line


@pytest.mark.parametrize("name", ["log.jsonl", "metrics.json", "checkpoint.pt", "config.yaml"])
def test_report_of_a_run_without_one_of_its_files(run, capsys, name):
    (run.folder / name).unlink()
    assert name in refusal_of(capsys, ["report", run.folder])


def test_log_that_was_cut_short_has_a_report(run):
    run.log.write_bytes(run.log.read_bytes()[:-20])
    assert main(["report", str(run.folder)]) == 0


def test_results_of_an_earlier_step_are_no_results_of_this_one(tmp_path, capsys, monkeypatch):
    """Evaluated half-way, trained on, killed before its own evaluation: made again, not shown as complete."""
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run")))
    run, step = Run(tmp_path / "run"), Trainer._train_step

    def stopping(self, *arguments):
        step(self, *arguments)
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        assert main(["train", "--config", str(file)]) == 128 + signal.SIGINT
    for command in ("evaluate", "report"):
        assert main([command, str(run.folder)]) == 0
    early = json.loads(run.metrics.read_text())
    assert early["step"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(commands, "evaluate_run", lambda *arguments: (_ for _ in ()).throw(OSError("killed here")))
        assert main(["train", "--config", str(file), "--resume"]) == 1
    capsys.readouterr()
    line = refusal_of(capsys, ["report", run.folder])
    assert "metrics.json: results after step 4, the checkpoint is of step 8" in line
    assert main(["train", "--config", str(file), "--resume"]) == 0
    assert json.loads(run.metrics.read_text())["step"] == 8


@pytest.mark.parametrize("option", [[], ["--resume"]], ids=["plain", "resume"])
def test_results_whose_checkpoint_is_gone_are_not_trained_over(run, tmp_path, capsys, option):
    run.checkpoint.unlink()
    before = contents(run)
    arguments = [word for word in words("restart", run, tmp_path) if word != "--restart"]
    assert f"{run.metrics}: of a run whose checkpoint is gone" in refusal_of(capsys, [*arguments, *option])
    assert contents(run) == before


def test_deletion_that_was_cut_short(run, tmp_path, monkeypatch):
    """After any number of the files, the run goes on as the old one, or starts anew, with a log that fits."""
    unlink = Path.unlink
    for files in range(8):
        folder = Run(shutil.copytree(run.folder, tmp_path / str(files)))
        left = [files]

        def stops(path, missing_ok=False, left=left):
            if path.name != ".lock" and not path.name.endswith(".tmp"):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", stops)
            with suppress(KeyboardInterrupt):
                folder.delete_files()
        results = [path for path in (folder.metrics, folder.report, *folder.adapters.glob("*")) if path.exists()]
        assert folder.checkpoint.exists() or not results
        assert folder.log.exists() or not folder.checkpoint.exists()


def test_second_train_with_other_settings_changes_nothing(run, tmp_path, capsys):
    before = contents(run)
    file = tmp_path / "other.yaml"
    file.write_text(dump_config(tiny_config(run.folder, {"optim.lr": 0.5})))
    for option in ([], ["--resume"]):
        refusal_of(capsys, ["train", "--config", file, *option])
    assert contents(run) == before
