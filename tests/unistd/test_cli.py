"""The command line, from training to a forecast; and that what is wrong is said in one line."""

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_run import tiny_config

from fastmoe_lora import load_adapters
from unistd import TASKS
from unistd.cli import main
from unistd.commands import build_parser
from unistd.schema import describe_keys
from unistd.training import Config, load_config
from unistd.training.run import build_model, open_run
from unistd.training.settings import dump_config


@pytest.fixture
def run_copy(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "copy")


def error_of(capsys, *arguments):
    assert main([str(word) for word in arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("unistd: error: ")
    assert message.count("\n") == 1, message
    return message


def test_run_folder_holds_everything(finished_run):
    config = load_config(finished_run / "config.yaml")
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert list(metrics["tasks"]) == config.tasks
    for task, result in metrics["tasks"].items():
        assert list(result) == ["model", "repeat_last", "training_mean", "linear"]
        assert {"mse", "mae_physical", "rmse_sum", "psnr", "ssim", "vrmse"} <= set(result["linear"])
        assert ("nino" in result["model"]) == (task == "enso")
        frames_out = config.task_options[task].frames_out
        assert len(metrics["per_lead"][task]["training_mean"]["ssim"]) == frames_out
    assert metrics["training_mean"] == {task: {"samples": 6} for task in config.tasks}
    for name in ("checkpoint.pt", "log.jsonl", "report.html", "adapters", "tensorboard"):
        assert (finished_run / name).exists(), name


def test_adapters_load_into_a_fresh_model(finished_run):
    _, config, trained = open_run(finished_run)
    fresh = build_model(config)
    load_adapters(fresh, finished_run / "adapters")
    for name, layer in trained.ramoe_layers().items():
        assert torch.equal(fresh.ramoe_layers()[name].lora_B, layer.lora_B)
        assert torch.equal(fresh.ramoe_layers()[name].rank, layer.rank)


def test_evaluate_repeats_the_results(run_copy, capsys):
    before = (run_copy / "metrics.json").read_text()
    (run_copy / "metrics.json").unlink()
    assert main(["evaluate", str(run_copy)]) == 0
    assert json.loads((run_copy / "metrics.json").read_text())["tasks"] == json.loads(before)["tasks"]
    shown = capsys.readouterr().out
    assert "of 3 tasks" in shown
    assert all(task in shown for task in ("taxibj", "kth", "enso"))


@pytest.mark.parametrize("batch", [None, 3])
def test_predict_is_the_models_forecast(finished_run, tmp_path, batch):
    _, _, model = open_run(finished_run)
    shape = model.tasks["kth"].input_shape
    frames = np.random.default_rng(0).random((batch, *shape) if batch else shape)
    np.save(tmp_path / "in.npy", frames)
    words = f"predict {finished_run} --task kth --input {tmp_path}/in.npy --output {tmp_path}/out.npy --gif".split()
    assert main(words) == 0
    with torch.no_grad():
        expected = model(torch.from_numpy(frames).float().reshape(-1, *shape), task="kth").numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected if batch else expected[0])
    with Image.open(tmp_path / "out.gif") as animation:
        assert animation.n_frames == 5  # 3 seen, 2 forecast
        assert animation.height == 256


def test_predict_names_what_is_wrong(finished_run, tmp_path, capsys):
    file, out = tmp_path / "in.npy", tmp_path / "out.npy"

    def message(frames, task="kth", run=finished_run):
        np.save(file, frames)
        return error_of(capsys, "predict", run, "--task", task, "--input", file, "--output", out)

    good = np.zeros((3, 1, 16, 16), np.float32)
    assert "expected shape (3, 1, 16, 16) or (B, 3, 1, 16, 16), found (2, 1, 16, 16)" in message(good[:2])
    assert "expected floats in [0, 1], found uint8 from 0 to 0" in message(good.astype(np.uint8))
    assert "expected floats in [0, 1], found float32 from 2.0 to 2.0" in message(good + 2)
    assert "found float32 from nan to nan" in message(good * np.nan)
    assert "unknown task 'kht', did you mean 'kth'" in message(good, task="kht")
    assert "not the folder of a run" in message(good, run=tmp_path)
    file.write_bytes(file.read_bytes()[:200])
    assert "in.npy: not a .npy file of numbers" in error_of(
        capsys, "predict", finished_run, "--task", "kth", "--input", file, "--output", out
    )
    assert not out.exists()


def test_tasks_lists_all_ten(capsys):
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in TASKS)
    assert shown.count("generated") == 10


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for key, _, default, meaning in describe_keys(Config):
        assert f"{key} {meaning}" in shown
        assert f"default {default})" in shown


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def test_the_help_of_every_command_shows_an_example_that_is_right():
    commands = list(parsers(build_parser()))
    assert len(commands) == 14
    for command in commands:
        examples = re.findall("^  (unistd .*)", command.epilog, re.MULTILINE)
        assert examples
        assert all(f"{line} ".startswith(f"{command.prog} ") for line in examples)
        for line in examples:
            assert build_parser().parse_args(shlex.split(line)[1:]).run_command


def test_train_takes_overrides_on_both_sides_and_reports_wrong_ones(tmp_path, capsys):
    message = error_of(capsys, "train", "optim.lr=0.1", "--config", "demo", "train.epoch=3")
    assert "unknown key 'train.epoch'; did you mean 'train.epochs'?" in message
    assert "unknown task 'kht', did you mean 'kth'" in error_of(
        capsys, "train", "--config", "demo", "tasks=[kht]", "task_options={}", f"run={tmp_path}/new"
    )
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        main(["train", "--config", "demo", "--resum-e"])
    assert "unrecognized arguments: --resum-e" in capsys.readouterr().err


def test_existing_run_is_not_trained_over(run_copy, capsys):
    file = run_copy / "again.yaml"
    file.write_text(dump_config(tiny_config(run_copy)))
    before = (run_copy / "checkpoint.pt").read_bytes()
    message = error_of(capsys, "train", "--config", file)
    assert "holds a run already; --resume continues it, --restart deletes it" in message
    assert main(["train", "--config", str(file), "--resume"]) == 0
    assert "is complete" in capsys.readouterr().out
    assert (run_copy / "checkpoint.pt").read_bytes() == before
    error_of(capsys, "train", "--config", file, "--restart", "tasks=[nothing]")
    assert (run_copy / "checkpoint.pt").read_bytes() == before, "a wrong config deletes nothing"


def test_resume_finishes_what_was_left_out(run_copy):
    file = run_copy / "again.yaml"
    file.write_text(dump_config(tiny_config(run_copy)))
    (run_copy / "report.html").unlink()
    (run_copy / "metrics.json").unlink()
    assert main(["train", "--config", str(file), "--resume"]) == 0
    assert (run_copy / "report.html").exists()
    assert (run_copy / "metrics.json").exists()


def test_checkpoint_of_another_config_is_one_line(run_copy, capsys):
    config = tiny_config(run_copy, {"model.hidden": 8})
    (run_copy / "config.yaml").write_text(dump_config(config))
    message = error_of(capsys, "evaluate", run_copy)
    assert "checkpoint.pt: " in message
    assert "config.yaml is not what it was trained with" in message
    assert "'model.hidden': 8, the run's is 4" in message


def test_stop_has_the_exit_status_of_its_signal(tmp_path, capsys, monkeypatch):
    import signal

    from unistd.training.trainer import Trainer

    step = Trainer._train_step

    def stopping(self, *arguments):
        step(self, *arguments)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    file = tmp_path / "tiny.yaml"
    file.write_text(dump_config(tiny_config(tmp_path / "run")))
    assert main(["train", "--config", str(file)]) == 128 + signal.SIGTERM
    assert "stopped at step 1 of 8, checkpoint saved; `--resume` continues" in capsys.readouterr().err
