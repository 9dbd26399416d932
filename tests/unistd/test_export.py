"""`unistd export`: files that run without our code, say what they are, and are not written where they are off."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import unistd.export as module
from unistd.cli import main
from unistd.training.run import Run, open_run, read_run

_PT2 = """
import sys, numpy, torch
frames, output = sys.argv[2:]
forecast = torch.export.load(sys.argv[1]).module()(torch.from_numpy(numpy.load(frames)))
numpy.save(output, forecast.detach().numpy())
assert not {"unistd", "fastmoe_lora"} & set(sys.modules)
"""
_ONNX = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
numpy.save(sys.argv[3], session.run(None, {"frames": numpy.load(sys.argv[2])})[0])
assert not {"torch", "unistd", "fastmoe_lora"} & set(sys.modules)
"""


def export(run, *words, task="kth", kind="pt2"):
    return main(["export", str(run), "--task", task, "--format", kind, *map(str, words)])


def refused(capsys, *culprits):
    message = capsys.readouterr().err
    assert message.startswith("unistd: error: ")
    assert message.count("\n") == 1, message
    for culprit in culprits:
        assert str(culprit) in message


@pytest.mark.parametrize(("kind", "task"), [("pt2", "kth"), ("onnx", "taxibj")])
def test_files_forecast_as_the_model_does_without_our_code(kind, task, finished_run, tmp_path, capsys):
    output = tmp_path / f"model.{kind}"
    assert export(finished_run, "--output", output, task=task, kind=kind) == 0
    said = capsys.readouterr().out
    assert f"{output.stat().st_size / 1e6:.2f} MB" in said
    assert "largest difference to the model" in said

    _, _, model = open_run(finished_run)
    frames = torch.rand(5, *model.tasks[task].input_shape)
    np.save(tmp_path / "frames.npy", frames.numpy())
    script = [sys.executable, "-W", "ignore", "-c", _PT2 if kind == "pt2" else _ONNX]
    subprocess.run([*script, output, tmp_path / "frames.npy", tmp_path / "forecast.npy"], check=True)
    with torch.no_grad():
        expected = model(frames, task)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "forecast.npy")), expected, rtol=1e-4, atol=1e-5)


def test_files_say_what_their_numbers_mean(finished_run):
    assert export(finished_run, task="enso", kind="pt2") == export(finished_run, task="enso", kind="onnx") == 0
    _, _, model = open_run(finished_run)
    spec, exports = model.tasks["enso"], Run(finished_run).exports

    import onnxruntime

    session = onnxruntime.InferenceSession(exports / "enso.onnx")
    properties = session.get_modelmeta().custom_metadata_map
    held = {module.METADATA: ""}
    program = torch.export.load(exports / "enso.pt2", extra_files=held)
    about = json.loads(held[module.METADATA])
    assert about == {key.removeprefix("unistd."): value for key, value in properties.items()}
    assert (float(about["scale"]), float(about["offset"]), about["unit"]) == (spec.scale, spec.offset, spec.unit)
    assert about["task"] == "enso"
    assert (about["step"], about["trained_on"]) == ("8", "generated")
    assert "(batch, 3, 1, 8, 16)" in about["input"]
    assert "(batch, 4, 1, 8, 16)" in about["output"]
    assert not [name for name in program.state_dict if "kth" in name or "taxibj" in name]  # no other task's weights


def test_a_scale_that_the_checkpoint_does_not_hold_is_not_made_up(finished_run):
    earlier = dataclasses.replace(read_run(finished_run), sources={}, units={})
    about = module.metadata(earlier, "enso")
    assert not {"scale", "offset", "unit", "trained_on"} & about.keys()
    assert about["physical"].startswith("unknown: ")


class _Off:
    """An exporter whose file gives something else than the model."""

    def __init__(self, change):
        self.change = change

    def __call__(self, forecaster, frames, about):
        class Off(torch.nn.Module):
            def forward(_, frames):
                return self.change(forecaster(frames))

        return module._pt2(Off(), frames, about)


@pytest.mark.parametrize(
    "change",
    [lambda y: y + 1e-3, lambda y: y * float("nan"), lambda y: y.flip(1), lambda y: y[:, :1]],
    ids=["off", "nan", "turned", "shape"],
)
def test_a_file_that_is_off_is_refused_and_the_old_one_stays(
    change, finished_run, tmp_path, monkeypatch, capsys, request
):
    monkeypatch.setitem(module.FORMATS, "pt2", (_Off(change), module._read_pt2))
    output = tmp_path / "model.pt2"
    output.write_bytes(b"old")
    assert export(finished_run, "--output", output) == 1
    refused(capsys, "the exported model gives" if "shape" in request.node.name else "'kth' differ from the model's by")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_what_cannot_be_exported_is_refused_by_name(finished_run, tmp_path, monkeypatch, capsys):
    cases = {
        "task": ({"task": "kht"}, (), ["kht", "did you mean 'kth'?"]),
        "folder": ({}, ("--output", tmp_path), [tmp_path, "found a folder"]),
        "parent": ({}, ("--output", tmp_path / "none" / "x.pt2"), [tmp_path / "none", "No such file or directory"]),
    }
    for options, words, culprits in cases.values():
        assert export(finished_run, *words, **options) == 1
        refused(capsys, *culprits)
    assert export(tmp_path) == 1
    refused(capsys, tmp_path, "not the folder of a run")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert export(finished_run, "--output", tmp_path / "x.onnx", kind="onnx") == 1
    refused(capsys, "not installed: onnxscript; pip install onnxscript")
    monkeypatch.undo()
    monkeypatch.setattr(module, "_LARGEST_ONNX", 1000)
    assert export(finished_run, "--output", tmp_path / "x.onnx", kind="onnx") == 1
    refused(capsys, "GiB of weights", "pt2 has no such limit")
    assert not list(tmp_path.iterdir())


def test_a_run_that_starts_anew_has_no_exports_of_the_old_one(tmp_path):
    run = Run(tmp_path)
    run.exports.mkdir()
    (run.exports / "kth.pt2").touch()
    run.delete_files()
    assert not run.exports.exists()
