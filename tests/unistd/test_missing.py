"""Missing values: filled for the model, left out of loss, measures and pictures; an error where a task has none."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from support.tiny_run import tiny_config
from torch.nn import functional as F

from unistd.cli import main
from unistd.export import FORMATS, _Forecaster, compare
from unistd.masks import fill_missing, masked_square_error
from unistd.report.pictures import MISSING, error_picture, first_channel_limits, frame_picture
from unistd.tasks import TASKS
from unistd.training.errors import TrainingError
from unistd.training.run import Run, open_run
from unistd.training.settings import dump_config
from unistd.training.trainer import Trainer

NAN = math.nan


def holes(frames, index):
    """A column that is never measured, pixels that sometimes are not, and every third sample without any target."""
    frames = frames.copy()
    frames[..., 0] = NAN
    frames[1, 0, 2] = NAN
    if index % 3 == 0:
        frames[3:] = NAN
    return frames


@pytest.fixture
def enso(monkeypatch):
    """ENSO with missing values; its generator can be changed."""
    task = TASKS["enso"]
    spec = dataclasses.replace(task.spec, missing=True)

    def put(change):
        generator = lambda spec, seed, index: change(task.generator(spec, seed, index), index)  # noqa: E731
        monkeypatch.setitem(TASKS, "enso", dataclasses.replace(task, spec=spec, generator=generator))

    put(holes)
    return put


def test_fill_takes_the_last_value_that_was_measured():
    frames = torch.tensor([[NAN, 1.0, NAN, 2.0], [0.5, NAN, NAN, NAN], [NAN, NAN, 3.0, NAN], [NAN] * 4])
    filled = fill_missing(frames.view(4, 4, 1, 1, 1)).view(4, 4)
    expected = [[1.0, 1.0, 1.0, 2.0], [0.5] * 4, [3.0] * 4, [0.0] * 4]
    assert filled.tolist() == expected


def test_fill_leaves_numbers_alone():
    frames = torch.randn(2, 3, 2, 4, 5)
    frames[0, 0, 0, 0, 0] = math.inf
    assert torch.equal(fill_missing(frames), frames)
    assert fill_missing(frames[:, :1]).shape == (2, 1, 2, 4, 5)


def test_loss_is_over_what_was_measured():
    prediction, target = torch.rand(2, 3, 1, 4, 4, requires_grad=True), torch.rand(2, 3, 1, 4, 4)
    torch.testing.assert_close(masked_square_error(prediction, target), F.mse_loss(prediction, target, reduction="sum"))
    target[0] = NAN
    target[1, 0, 0, 0, 0] = NAN
    there = ~target.isnan()
    loss = masked_square_error(prediction, target)
    torch.testing.assert_close(loss, F.mse_loss(prediction[there], target[there], reduction="sum"))
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad[~there] == 0).all()


def test_loss_of_nothing_measured_is_zero_with_no_gradient():
    prediction = torch.rand(1, 2, 1, 3, 3, requires_grad=True)
    loss = masked_square_error(prediction, torch.full((1, 2, 1, 3, 3), NAN))
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_whole_run(enso, tmp_path, capsys):
    folder = tmp_path / "run"
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config(folder)))
    assert main(["train", "--config", str(file)]) == 0
    record = json.loads((folder / "metrics.json").read_text())
    for forecaster in ("model", "repeat_last", "training_mean", "linear"):
        result = record["tasks"]["enso"][forecaster]
        assert 0 < result["mse"] < 1
        assert result["ssim"] is not None
    assert (folder / "report.html").exists()
    assert list((folder / "tensorboard" / "test" / "linear").iterdir())

    _, _, model = open_run(folder)
    assert model.tasks["enso"].missing
    shape = model.tasks["enso"].input_shape
    frames = torch.rand(2, *shape)
    frames[0, :, :, 2] = NAN
    frames[1] = NAN
    np.save(tmp_path / "in.npy", frames.numpy())
    words = ["predict", str(folder), "--input", str(tmp_path / "in.npy"), "--output", str(tmp_path / "out.npy")]
    assert main([*words, "--task", "enso", "--gif"]) == 0
    forecast = torch.from_numpy(np.load(tmp_path / "out.npy"))
    assert forecast.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(forecast, model(fill_missing(frames), task="enso"))
    spec = model.tasks["enso"]
    np.save(tmp_path / "in.npy", frames.numpy() * spec.scale + spec.offset)
    assert main([*words, "--task", "enso", "--units", "physical"]) == 0
    physical = (torch.from_numpy(np.load(tmp_path / "out.npy")) - spec.offset) / spec.scale
    torch.testing.assert_close(physical, forecast, rtol=1e-4, atol=1e-5)

    kth = model.tasks["kth"]
    np.save(tmp_path / "in.npy", np.full(kth.input_shape, NAN, np.float32))
    capsys.readouterr()
    assert main([*words, "--task", "kth"]) == 1
    assert "expected floats in [0, 1], found float32 from nan" in capsys.readouterr().err
    np.save(tmp_path / "in.npy", np.full(shape, math.inf, np.float32))
    assert main([*words, "--task", "enso"]) == 1
    assert "expected floats in [0, 1] or NaN, found float32 from inf" in capsys.readouterr().err

    assert main(["export", str(folder), "--task", "enso", "--format", "pt2"]) == 0
    exported = FORMATS["pt2"][1](folder / "exports" / "enso.pt2")
    difference, largest = compare(_Forecaster(model, "enso").eval(), exported, shape, missing=True)
    assert difference <= 1e-4 * largest
    assert main(["export", str(folder), "--task", "enso", "--format", "onnx"]) == 0


def trainer(tmp_path, changes=None):
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    return Trainer(tiny_config(run.folder, changes), run, Console(quiet=True))


def test_a_batch_of_which_nothing_was_measured_is_no_loss_in_the_log(enso, tmp_path):
    calls = []

    def change(frames, index):
        calls.append(index)
        if len(calls) > 6:  # those of the baseline
            frames[3:] = NAN
        return frames

    enso(change)
    running = trainer(tmp_path, {"data.val_samples": 0, "train.epochs": 1, "ranks.epochs": 0})
    running.fit()
    losses = [json.loads(line).get("losses", {}) for line in running.run.log.read_text().splitlines()]
    assert all("enso" not in loss for loss in losses)
    assert sum("kth" in loss for loss in losses) == 2
    assert all(value.isfinite().all() for value in running.model.module.state_dict().values())


def test_nan_in_a_task_that_has_no_missing_values_is_an_error(tmp_path, monkeypatch):
    task = TASKS["enso"]
    generator = lambda spec, seed, index: holes(task.generator(spec, seed, index), index)  # noqa: E731
    monkeypatch.setitem(TASKS, "enso", dataclasses.replace(task, generator=generator))
    with pytest.raises(TrainingError, match=r"task 'enso': .* is nan on its first 6 training samples, .*NaN or Inf"):
        trainer(tmp_path)


def test_evaluation_names_the_task(enso, tmp_path):
    running = trainer(tmp_path)
    data = running.loader.dataset.datasets
    with torch.no_grad():
        running.model.module.decoders["kth"].readout.bias.fill_(NAN)
    with pytest.raises(ValueError, match="task 'kth': the prediction holds NaN or Inf"):
        running.evaluate({"kth": data["kth"]})
    enso(lambda frames, index: np.where(np.arange(len(frames))[:, None, None, None] < 3, frames, NAN))
    with pytest.raises(ValueError, match="task 'enso': in none of its 6 samples a target pixel was measured"):
        running.evaluate({"enso": data["enso"]})
    enso(lambda frames, index: np.full_like(frames, math.inf))
    with pytest.raises(ValueError, match="task 'enso': its frames hold Inf"):
        running.evaluate({"enso": data["enso"]})


def test_a_record_that_begins_still_is_measured_on_samples_spread_over_it(enso, tmp_path, capsys):
    enso(lambda frames, index: frames * 0 if index < 70 else frames)
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    config = tiny_config(run.folder, {"data.train_samples": 100})
    running = Trainer(config, run, Console())
    assert running.baselines["enso"] > 0
    said = capsys.readouterr().out
    assert "task 'enso': nothing that was measured changes in its first 64 training samples" in said
    assert "that on all 100 training samples" in said


@pytest.mark.parametrize("channels", [1, 3])
def test_missing_pixels_are_grey(channels):
    spec = TASKS["bair" if channels == 3 else "kth"].spec
    frame = np.random.default_rng(0).random((channels, 4, 5)).astype(np.float32)
    whole = frame_picture(frame, spec)
    frame[0, 1, 2] = NAN
    picture = frame_picture(frame, spec)
    assert tuple(picture[1, 2]) == MISSING
    assert (picture != whole).any(-1).sum() <= 1
    assert tuple(error_picture(frame, 1.0)[1, 2]) == MISSING
    assert first_channel_limits(frame[None]) == (np.nanmin(frame[0]), np.nanmax(frame[0]))
    assert first_channel_limits(np.full((2, 1, 3, 3), NAN)) == (0.0, 1.0)
