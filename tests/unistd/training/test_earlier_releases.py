"""Runs that earlier releases wrote: they open, and give what they gave then; one of a later release is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import written
from support.run_folder import refusal_of

from unistd.cli import main
from unistd.training.best import load_best
from unistd.training.checkpoint import load_checkpoint, save_checkpoint
from unistd.training.formats import FORMAT
from unistd.training.log import read_log
from unistd.training.run import Run

RELEASES = sorted((Path(__file__).parents[2] / "fixtures").glob("*/run"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.parent.name)
def there(request):
    """The folder of what a release wrote."""
    return request.param.parent


@pytest.fixture
def run(there, tmp_path):
    """A copy of its run, which was stopped while its ranks were learned."""
    return Run(shutil.copytree(there / "run", tmp_path / "run"))


def assert_alike(found, expected):
    """Numbers of another machine: the same up to rounding."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    else:
        assert found == expected or found == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_evaluates_forecasts_and_reports_as_it_did(there, run, tmp_path):
    assert main(["report", str(run.folder)]) == 0
    expected = json.loads(run.metrics.read_text())
    assert main(["evaluate", str(run.folder)]) == 0
    assert_alike(json.loads(run.metrics.read_text())["tasks"], expected["tasks"])
    np.save(tmp_path / "in.npy", written.frames())
    asked = ["--task", written.TASK, "--input", str(tmp_path / "in.npy"), "--output", str(tmp_path / "out.npy")]
    assert main(["predict", str(run.folder), *asked]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), np.load(there / "forecast.npy"), rtol=1e-4, atol=1e-5)


def test_goes_on_to_the_end_that_it_had(there, run):
    assert main(["train", "--config", str(run.config), f"run={run.folder}", "--resume"]) == 0
    found, expected = read_log(run.log), read_log(there / "ended.jsonl")
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for record, then in zip(found, expected, strict=True):
        assert_alike(record, {key: then[key] for key in ("losses", "val", "lr", "rank_mean") if key in then})
    assert load_checkpoint(run.checkpoint)["format"] == load_best(run.best)["format"] == FORMAT


def test_best_weights_open(run):
    if run.best.exists():  # not of the first
        assert main(["evaluate", str(run.folder), "--checkpoint", "best"]) == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (FORMAT + 1, f"a checkpoint of form {FORMAT + 1}, of a later release; this one reads forms up to {FORMAT}"),
        ("2", "damaged checkpoint, 'format': expected a whole number, found '2'"),
    ],
)
def test_a_later_form_is_refused_by_name(run, capsys, number, words):
    save_checkpoint(run.checkpoint, load_checkpoint(run.checkpoint) | {"format": number})
    assert f"{run.checkpoint}: {words}" in refusal_of(capsys, "evaluate", run.folder)
    resumed = ("train", "--config", run.config, f"run={run.folder}", "--resume")
    assert f"{run.checkpoint}: {words}" in refusal_of(capsys, *resumed)
