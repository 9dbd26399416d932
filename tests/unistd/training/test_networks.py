"""Measures that take a network: from a file into a run's results, or refused before the run starts."""

import json

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.metrics import NETWORKS
from unistd.training.data import task_specs
from unistd.training.networks import read_networks
from unistd.training.settings import dump_config

CLIPS = {  # of KTH, just as long and as large as both measures ask for
    "tasks": ["kth", "enso"],
    "task_options": {"kth": {"height": 32, "width": 32, "patch": 8, "frames_in": 2, "frames_out": 9}},
    "data": {"train_samples": 4, "val_samples": 0, "test_samples": 2},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Config keys that name files of random networks, the heads of LPIPS positive as the published ones are."""
    torch.manual_seed(0)
    keys = {}
    for name, network in NETWORKS.items():
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        state = network.make().state_dict()
        save_file({key: value.abs() if key.startswith("lin") else value for key, value in state.items()}, path)
        keys[f"metrics.{name}_weights"] = str(path)
    return keys


def clips(folder, changes):
    return tiny_config(folder, {**CLIPS, **changes})


def test_a_run_with_their_files_has_them(tmp_path, files, capsys):
    config = clips(tmp_path / "run", {**files, "train.epochs": 1, "ranks.epochs": 1, "train.epoch_samples": 2})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert main(["train", "--config", str(tmp_path / "config.yaml")]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for forecaster, values in results["tasks"]["kth"].items():
        assert values["lpips"] >= 0, forecaster
        assert values["fvd"] >= 0, forecaster
        leads = results["per_lead"]["kth"][forecaster]
        assert (len(leads["lpips"]), leads["fvd"]) == (9, [])
    assert "lpips" not in results["tasks"]["enso"]["model"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "LPIPS" in report  # a curve over the lead times, which FVD has not
    assert "<td>lpips</td>" in report
    assert "<td>fvd</td>" in report


def test_those_without_a_file_are_of_no_task(tmp_path):
    assert not set(NETWORKS) & set(task_specs(clips(tmp_path, {}))["kth"].metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_out": 8}, "task_options.kth: 8 frames to forecast, expected at least 9 for fvd, or other metrics"),
        ({"height": 24}, "task_options.kth: frames of 24 x 32 pixels, expected at least 31 x 31 for lpips"),
    ],
)
def test_frames_that_they_do_not_fit_are_refused(tmp_path, files, options, message):
    kth = CLIPS["task_options"]["kth"] | {"metrics": ["mse", "lpips", "fvd"]} | options
    with pytest.raises(ValueError, match=message):
        task_specs(clips(tmp_path, {**files, "task_options": {"kth": kth}}))


def test_a_measure_that_is_asked_for_without_its_file_is_refused(tmp_path):
    kth = CLIPS["task_options"]["kth"] | {"metrics": ["mse", "lpips"]}
    config = clips(tmp_path, {"task_options": {"kth": kth}})
    with pytest.raises(ValueError, match=r"expected its file as metrics\.lpips_weights$"):
        task_specs(config)


def _without(state):
    del state["lin3.model.1.weight"]


def _of_another_shape(state):
    state["lin0.model.1.weight"] = torch.ones(1, 63, 1, 1)


def _not_finite(state):
    state["net.slice1.0.bias"][3] = torch.nan


def _with_more(state):
    state["head.weight"] = torch.ones(2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, "has no 'lin3.model.1.weight', expected the state dict of PerceptualNetwork"),
        (_of_another_shape, r"'lin0.model.1.weight' is \(1, 63, 1, 1\), expected \(1, 64, 1, 1\)"),
        (_not_finite, "'net.slice1.0.bias' holds NaN, Inf or no floating-point numbers"),
        (_with_more, "'head.weight' has no place in PerceptualNetwork"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, damage, message):
    state = NETWORKS["lpips"].make().state_dict()
    damage(state)
    torch.save(state, tmp_path / "lpips.pt")
    config = clips(tmp_path, {"metrics.lpips_weights": str(tmp_path / "lpips.pt")})
    with pytest.raises(ValueError, match=f"^metrics.lpips_weights: .*lpips.pt: {message}"):
        read_networks(config)


def test_damaged_and_missing_files_are_one_line(tmp_path):
    path = tmp_path / "i3d.safetensors"
    config = clips(tmp_path, {"metrics.fvd_weights": str(path)})
    with pytest.raises(FileNotFoundError, match=r"^metrics.fvd_weights: no such file .*i3d.safetensors$"):
        read_networks(config)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"i3d.safetensors: cannot be read as weights \("):
        read_networks(config)
