"""metrics.json and log.jsonl that are damaged, missing or of another step."""

import json
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from support.run_folder import contents, refusal_of, words
from support.tiny_run import tiny_config

from unistd import commands
from unistd.cli import main
from unistd.training.run import Run
from unistd.training.settings import dump_config
from unistd.training.trainer import Trainer

pytestmark = pytest.mark.timeout(120)


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
    assert f"{run.metrics}: " in refusal_of(capsys, "report", run.folder)


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
        (("tasks", "kth", "model", "mse_of_old"), 0.1),
        (("tasks", "kth", "linear", "mae"), True),
        (("per_lead", "kth", "model", "mse"), [0.1, "0.1"]),
        (("per_lead", "kth", "model", "psnr"), 3.0),
        (("per_lead", "kth", "model", "ssim"), [[0.1]]),
        (("per_lead", "kth", "model", "mae"), [0.1] * 5000),
        (("per_lead", "bair"), {}),
        (("per_lead",), []),
        (("training_mean", "kth"), {"samples": -1}),
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
    line = refusal_of(capsys, "report", run.folder)
    assert f"{run.metrics}: " in line
    assert last in line


def test_metrics_of_an_earlier_release(run):
    record = json.loads(run.metrics.read_text())
    for key in ("step", "per_lead", "training_mean"):
        del record[key]
    measures = ("mse", "mae", "psnr", "ssim")
    record["tasks"] = {
        task: {who: {name: result[who][name] for name in measures} for who in ("model", "repeat_last")}
        for task, result in record["tasks"].items()
    }
    run.metrics.write_text(json.dumps(record))
    run.report.unlink()
    assert main(["report", str(run.folder)]) == 0
    assert "Over the lead time" not in run.report.read_text()
    command = ["train", "--config", str(run.config), f"run={run.folder}", "--resume"]
    assert main(command) == 0, "complete: shows what is there"


def test_measures_on_request_after_the_training(run):
    """They change no number of the training, so a run may be measured by others."""
    config = yaml.safe_load(run.config.read_text())
    config["run"] = str(run.folder)
    config["task_options"]["taxibj"] |= {"metrics": ["ssim_openstl", "csi", "vrmse_well"], "thresholds": [100, 200.5]}
    run.config.write_text(yaml.safe_dump(config))
    assert main(["evaluate", str(run.folder)]) == 0
    result = json.loads(run.metrics.read_text())["tasks"]["taxibj"]["model"]
    assert {"mse", "ssim_openstl", "csi_100", "csi_pool4_200.5", "vrmse_well"} <= set(result)
    assert "psnr" not in result
    assert main(["report", str(run.folder)]) == 0


def test_undefined_values_and_a_baseline_without_error(run, capsys):
    record = json.loads(run.metrics.read_text())
    for result in record["tasks"].values():
        result["repeat_last"]["mse"] = 0.0
        result["model"]["ssim"] = None
    for leads in record["per_lead"].values():
        leads["model"] = {name: [None for _ in values] for name, values in leads["model"].items()}
    run.metrics.write_text(json.dumps(record))
    assert main(["report", str(run.folder)]) == 0
    capsys.readouterr()
    assert main(["train", "--config", str(run.config), f"run={run.folder}", "--resume"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("kth"))
    assert row.split()[2:4] == ["0.00000", "-"]
    assert row.split()[8] == "-"


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
    line = refusal_of(capsys, "report", run.folder)
    assert f"{run.log}: line 2 is no record of" in line


@pytest.mark.parametrize("name", ["log.jsonl", "metrics.json", "checkpoint.pt", "config.yaml"])
def test_report_of_a_run_without_one_of_its_files(run, capsys, name):
    (run.folder / name).unlink()
    assert name in refusal_of(capsys, "report", run.folder)


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
    line = refusal_of(capsys, "report", run.folder)
    assert "metrics.json: results after step 4, the checkpoint is of step 8" in line
    assert main(["train", "--config", str(file), "--resume"]) == 0
    assert json.loads(run.metrics.read_text())["step"] == 8


@pytest.mark.parametrize("option", [[], ["--resume"]], ids=["plain", "resume"])
def test_results_whose_checkpoint_is_gone_are_not_trained_over(run, tmp_path, capsys, option):
    run.checkpoint.unlink()
    before = contents(run)
    arguments = [word for word in words("restart", run, tmp_path) if word != "--restart"]
    assert f"{run.metrics}: of a run whose checkpoint is gone" in refusal_of(capsys, *arguments, *option)
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
        refusal_of(capsys, "train", "--config", file, *option)
    assert contents(run) == before
