"""A YAML file makes a task that every command knows; its run keeps it."""

import json
import shutil

import numpy as np
import pytest
import yaml
from support.forms.own import moving_frames, write_frames, write_hdf5
from support.tiny_run import TINY

from unistd.cli import main
from unistd.tasks import SPLITS, build_dataset
from unistd.training.data import task_specs
from unistd.training.own import task_named
from unistd.training.run import open_run
from unistd.training.settings import ConfigError, load_config

DESCRIPTION = {"title": "My frames", "files": "frames", "frames_in": 2, "frames_out": 2, "unit": "lux"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISTD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path):
    tree = {key: value for key, value in TINY.items() if key != "task_options"} | {"run": str(tmp_path / "run")}
    tree["task_options"] = {"taxibj": TINY["task_options"]["taxibj"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree | {"tasks": ["taxibj"]}))
    write_frames(tmp_path / "here", moving_frames(40, (13, 15)))
    (tmp_path / "here" / "mine.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    return tmp_path / "config.yaml"


def said(capsys, *words):
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_every_command_knows_it_and_the_run_keeps_it(config, tmp_path, capsys):
    run = tmp_path / "run"
    out = said(capsys, "train", "--config", config, f"tasks=[taxibj,{tmp_path / 'here' / 'mine.yaml'}]")
    assert f"mine: 21 training samples, {tmp_path / 'here' / 'frames'}" in out
    assert json.loads((run / "metrics.json").read_text())["units"]["mine"]["unit"] == "lux"
    assert "My frames" in (run / "report.html").read_text()
    (tmp_path / "here" / "mine.yaml").unlink()
    said(capsys, "evaluate", run)
    said(capsys, "report", run)
    assert "is complete" in said(capsys, "train", "--config", run / "config.yaml", "--resume")
    said(capsys, "data", "export-well", run, tmp_path / "well")
    shutil.rmtree(tmp_path / "here")
    spec = open_run(run)[2].tasks["mine"]
    assert (spec.title, spec.grid, spec.unit) == ("My frames", (7, 8), "lux")
    np.save(tmp_path / "in.npy", np.random.default_rng(0).random(spec.input_shape, np.float32))
    said(capsys, "predict", run, "--task", "mine", "--input", tmp_path / "in.npy", "--output", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (2, 1, 13, 15)
    said(capsys, "export", run, "--task", "mine", "--format", "pt2")
    assert main(["evaluate", str(run)]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'here' / 'frames'}: found no files" in error
    assert error.count("\n") == 1


def test_a_folder_below_the_root_is_a_task(config, tmp_path, capsys):
    root = tmp_path / "here"
    out = said(capsys, "train", "--config", config, "tasks=[frames]", f"data.root={root}", "task_options={}")
    assert f"frames: 17 training samples, {root / 'frames'}" in out
    moved = root.rename(tmp_path / "there")
    own = tmp_path / "run" / "config.yaml"
    own.write_text(own.read_text().replace(str(root), str(moved)))
    said(capsys, "evaluate", tmp_path / "run")
    own.write_text(own.read_text().replace("stride: 1", "stride: 2"))
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert "'own_tasks.frames.stride'" in capsys.readouterr().err


def test_data_check_and_the_table_know_it(config, tmp_path, capsys):
    path = tmp_path / "here" / "mine.yaml"
    assert "My frames" in said(capsys, "tasks", path)
    root = tmp_path / "here"
    out = said(capsys, "data", "check", "--data-root", root, "--task", path)
    assert f"mine: {root / 'frames'}: 21 train, 5 val, 5 test" in out
    assert "tasks found: 1 of 1; faults: 0" in out
    said(capsys, "data", "preview", path, "--output", tmp_path / "pictures")
    assert (tmp_path / "pictures" / "mine.gif").stat().st_size > 0
    (root / "frames" / "frame_0020.png").write_bytes(b"")
    assert main(["data", "check", "--data-root", str(root), "--task", str(path)]) == 1
    assert str(root / "frames" / "frame_0020.png") in "".join(capsys.readouterr())


def test_export_well_is_read_back(tmp_path, capsys):
    here = tmp_path / "here"
    write_hdf5(here, np.stack([moving_frames(40), 255 - moving_frames(40)], axis=1) * 0.5 - 20)
    keys = {"files": "data.h5", "variable": "fields/rain", "axes": "tchw", "frames_in": 3, "frames_out": 1}
    (here / "mine.yaml").write_text(yaml.safe_dump(keys))
    said(capsys, "data", "export-well", here / "mine.yaml", tmp_path / "well")
    folder = tmp_path / "well" / "mine"
    assert yaml.safe_load((folder / "stats.yaml").read_text())["mean"]["channel_0"] == pytest.approx(43, abs=2)
    back = {"files": "mine/data/*/mine.hdf5", "form": "well", "frames_in": 3, "frames_out": 1}
    back["splits"] = {"val": ["valid/*.hdf5"], "test": ["test/*.hdf5"]}
    (tmp_path / "well" / "back.yaml").write_text(yaml.safe_dump(back))
    first, second = (datasets_of(path) for path in (here / "mine.yaml", tmp_path / "well" / "back.yaml"))
    assert [len(data) for data in first] == [len(data) for data in second]
    for one, other in zip(first, second, strict=True):
        for index in (0, len(one) - 1):
            np.testing.assert_allclose(physical(one, index), physical(other, index), atol=1e-3)
    assert main(["data", "export-well", str(here / "mine.yaml"), str(tmp_path / "well")]) == 1
    assert "is there already" in capsys.readouterr().err


def datasets_of(path):
    task = task_named(str(path), None)
    return [build_dataset(task.spec, split, root="/", task=task) for split in SPLITS]


def physical(data, index):
    return np.concatenate([part.numpy() for part in data[index]]) * data.spec.scale + data.spec.offset


WRONG = {
    "hight: 8": ("unknown key 'hight'", "did you mean 'height'"),
    "files: 3": ("key 'files'", "found 3"),
    "files: []": ("key 'files'",),
    "files: ''": ("key 'files'", "expected a path"),
    "title: ''": ("key 'title'",),
    "discipline: fish": ("key 'discipline'", "'traffic'"),
    "form: gif": ("key 'form'", "'frames'"),
    "axes: txy": ("key 'axes'",),
    "axes: tth": ("key 'axes'", "each letter once"),
    "channels: 0": ("key 'channels'", "found 0"),
    "height: 8": ("height and width", "both"),
    "frames_in: true": ("key 'frames_in'", "found True"),
    "step: 1.5": ("key 'step'", "found 1.5"),
    "range: [1, 0]": ("key 'range'", "second above the first"),
    "range: [0]": ("key 'range'",),
    "range: max": ("key 'range'",),
    "missing: none": ("key 'missing'",),
    "missing: .nan": ("key 'missing'",),
    "splits: {val: 0.5, test: 0.5}": ("splits", "less than 1"),
    "splits: {val: [a], test: 0.5}": ("splits", "two lists"),
    "splits: {by: sample}": ("key 'splits.by'", "'time'"),
    "splits: {vall: 0.1}": ("unknown key 'splits.vall'", "did you mean 'splits.val'"),
    "splits: 3": ("key 'splits'",),
    "name: kth": ("name 'kth'", "one of the ten"),
    "name: 3": ("key 'name'", "found 3"),
    "name: 'a b'": ("'a b' cannot be the name of a task",),
    "name: keys": ("'keys' cannot be the name of a task",),
    "unit: 3": ("key 'unit'",),
    "time: '%Q'": ("'%Q'",),
    "- 3": ("a config is a mapping",),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_description_is_one_line_that_names_file_and_key(config, tmp_path, text):
    path = tmp_path / "here" / "mine.yaml"
    path.write_text(text if text.startswith(("files", "-")) else f"files: frames\n{text}\n")
    with pytest.raises(ValueError) as error:
        load_config(config, [f"tasks=[{path}]", "task_options={}"])
    line = str(error.value)
    assert "\n" not in line
    assert str(path) in line or text == "time: '%Q'"
    for word in WRONG[text]:
        assert word in line


def test_a_description_without_files_and_none_at_all(config, tmp_path):
    path = tmp_path / "here" / "mine.yaml"
    path.write_text("frames_in: 2")
    for words, what in (
        ([f"tasks=[{path}]"], "key 'files' is missing"),
        (["tasks=[there.yaml]"], "no description 'there.yaml': not a file"),
        (["tasks=[mine]"], "unknown task 'mine'"),
        (["tasks=[nyc_taxy]"], "did you mean 'nyc_taxi'"),
        (["own_tasks.mine.step=2"], "key 'own_tasks.mine.files' is missing"),
        (["tasks=[nyc_taxi]"], "data.root is null"),
    ):
        with pytest.raises(ConfigError) as error:
            load_config(config, [*words, "task_options={}"])
        assert what in str(error.value)


def test_keys_of_the_config_go_before_those_of_the_file(config, tmp_path):
    path = tmp_path / "here" / "mine.yaml"
    task = load_config(config, [f"tasks=[{path}]", "task_options={}", "own_tasks.mine.step=3"]).own_tasks["mine"]
    assert (task.step, task.unit) == (3, "lux")


def test_measures_are_chosen_and_must_fit(config, tmp_path):
    path = tmp_path / "here" / "mine.yaml"

    def specs(**keys):
        path.write_text(yaml.safe_dump(DESCRIPTION | keys))
        return task_specs(load_config(config, [f"tasks=[{path}]", "task_options={}"]))

    spec = specs(metrics=["mae", "csi"], thresholds=[16, 74])["mine"]
    assert (spec.metrics, spec.thresholds) == (("mse", "mae", "csi"), (16, 74))
    assert specs(height=5, width=9, metrics=["mae"])["mine"].height == 5
    for keys, words in (
        ({"height": 5, "width": 9}, "own_tasks.mine: frames of 5 x 9 pixels, expected at least 7 x 7 for SSIM"),
        ({"metrics": ["mee"]}, "mee"),
        ({"metrics": ["csi"]}, "thresholds"),
        ({"patch": 64}, "height is 13, expected at least patch 64"),
    ):
        with pytest.raises(ConfigError) as error:
            specs(**keys)
        assert words in str(error.value)
