"""A run's folder of any name, moved, copied, read-only, or without what is not needed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.refusal import assert_refused, attempt
from support.run_folder import COMMANDS, refusal_of, words
from support.tiny_run import STEPS, tiny_config

from unistd.cli import main
from unistd.messages import printable
from unistd.training.checkpoint import load_checkpoint
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.trainer import Trainer

pytestmark = pytest.mark.timeout(120)


# names


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
    line = refusal_of(capsys, "evaluate", folder)
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
        refusal_of(capsys, *arguments)
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


# moved, copied, without what is not needed


def test_folder_that_was_moved(run, tmp_path, capsys):
    moved = Run(run.folder.rename(tmp_path / "moved"))
    for command in ("evaluate", "report", "predict"):
        assert main(words(command, moved, tmp_path)) == 0
    capsys.readouterr()
    line = refusal_of(capsys, "train", "--config", moved.config, "--resume")
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
