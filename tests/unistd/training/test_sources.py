"""Where a run's data come from: files below data.root, generated where asked for, never in silence."""

import json

import h5py
import numpy as np
import pytest
from support.forms.deepst import COUNTS, DATES
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.tasks import DataFileError
from unistd.training import data
from unistd.training.run import open_run
from unistd.training.settings import ConfigError, dump_config, load_config

H5 = "BJ15_M8x8_T30_InOut.h5"
SMALL = {"height": 8, "width": 8, "patch": 4, "frames_in": 2, "frames_out": 2}


@pytest.fixture
def root(tmp_path):
    """Flow of 8 x 8 cells, nothing else."""
    (tmp_path / "root" / "taxibj").mkdir(parents=True)
    with h5py.File(tmp_path / "root" / "taxibj" / H5, "w") as file:
        file["data"] = np.kron(30.0 * COUNTS, np.ones((2, 2)))
        file["date"] = DATES
    return tmp_path / "root"


def sources(root, generated, tasks=("taxibj", "kth")):
    options = {"root": str(root), "generated": generated, "train_samples": 2}
    config = tiny_config("run", {"tasks": list(tasks), "task_options": {"taxibj": SMALL}, "data": options})
    datasets = data.split_datasets(config, "train")
    return {task: dataset.source for task, dataset in datasets.items()}


@pytest.mark.parametrize("generated", ["all", ["kth"], ["kth", "taxibj"]], ids=str)
def test_files_where_they_are_and_generated_where_asked_for(root, generated):
    assert sources(root, generated) == {"taxibj": str(root / "taxibj"), "kth": "generated"}


@pytest.mark.parametrize("generated", [[], ["taxibj"], ["enso"]], ids=str)
def test_what_is_not_asked_for_is_named(root, generated):
    with pytest.raises(DataFileError, match=r"data.root .*: found no files of task kth \(but \['taxibj'\]\); "):
        sources(root, generated)
    with pytest.raises(DataFileError, match=r"of tasks kth, enso .*; data.generated=\[kth,enso\] asks for"):
        sources(root, [], tasks=("kth", "taxibj", "enso"))


@pytest.mark.parametrize("value", ["kht", "[kht]", "some", "true", "[true]", "null", "{kth: true}"])
def test_generated_is_all_or_tasks(value):
    with pytest.raises(ConfigError, match=r"data\.generated"):
        load_config("demo", [f"data.generated={value}"])


def test_run_says_what_it_trains_on(root, tmp_path, capsys):
    changes = {"tasks": ["taxibj", "kth"], "data.root": str(root), "train.epochs": 2, "ranks.epochs": 1}
    options = {"taxibj": SMALL, "kth": {"height": 16, "width": 16, "patch": 8, "frames_in": 3, "frames_out": 2}}
    file = tmp_path / "run.yaml"

    def train(*overrides):
        return main(["train", "--config", str(file), *overrides]), capsys.readouterr()

    file.write_text(dump_config(tiny_config(tmp_path / "run", changes | {"task_options": options})))
    status, said = train()
    assert (status, said.err.count("\n")) == (1, 1)
    assert "found no files of task kth" in said.err
    assert not (tmp_path / "run").exists(), "stopped before it began"
    status, said = train("data.generated=[kth]")
    assert status == 0, said.err
    assert f" training samples, {root / 'taxibj'}, 1.0 is " in said.out
    assert (
        "  kth: 6 training samples, generated, 1.0 is 255 8-bit level\n    held out: 2 val and 3 test samples\n"
        in said.out
    )
    page = (tmp_path / "run/report.html").read_text()
    assert "<td>8-bit level</td><td>generated</td>" in page
    assert f"<td>{root / 'taxibj'}</td>" in page
    source = json.loads((tmp_path / "run" / "metrics.json").read_text())["source"]
    assert source == {"taxibj": str(root / "taxibj"), "kth": "generated"}
    scale = float(30 * COUNTS[: len(COUNTS) - 2 * (len(COUNTS) // 5)].max())  # of the train split
    units = json.loads((tmp_path / "run" / "metrics.json").read_text())["units"]
    assert units["taxibj"] == {"scale": scale, "offset": 0.0, "unit": units["taxibj"]["unit"]}
    assert open_run(tmp_path / "run")[2].tasks["taxibj"].scale == scale, "a forecast in the files' units"
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    with h5py.File(root / "taxibj" / H5, "r+") as file:
        file["data"][0] = 5000.0
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert f"was trained on values of scale {scale}, " in capsys.readouterr().err
    (root / "taxibj" / H5).rename(root / "elsewhere.h5")
    (root / "taxibj").rmdir()
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert "found no files of task taxibj" in capsys.readouterr().err
