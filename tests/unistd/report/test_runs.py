"""Runs beside one another: their table, their curves, and what is no run."""

import json
import shutil

import pytest

from unistd.cli import main
from unistd.report.runs import find_runs, summarise
from unistd.training.run import Run


def test_a_run_is_summarised(finished_run):
    summary = summarise(Run(finished_run))
    records = [json.loads(line) for line in (finished_run / "log.jsonl").read_text().splitlines()]
    last = [record["val"] for record in records if "val" in record][-1]
    shares = [result["model"]["mse"] / result["repeat_last"]["mse"] for result in last.values()]
    assert summary.tasks == ("taxibj", "kth", "enso")
    assert summary.step == 8
    assert summary.errors[-1] == (8, pytest.approx(sum(shares) / 3))
    assert len(summary.errors) == 4


def test_runs_are_listed_and_drawn(finished_run, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.copytree(finished_run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes").mkdir()
    assert [run.folder.name for run in find_runs([tmp_path / "runs"])] == ["one", "two"]
    page = tmp_path / "all.html"
    assert main(["runs", str(tmp_path / "runs"), str(finished_run), "--output", str(page)]) == 0
    assert "taxibj, kth, enso" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "runs/one" in text
    assert "runs/two" in text


def test_what_is_no_run_is_one_line(finished_run, tmp_path, capsys):
    damaged = shutil.copytree(finished_run, tmp_path / "damaged")
    lines = (damaged / "log.jsonl").read_text().splitlines(keepends=True)
    (damaged / "log.jsonl").write_text("".join([*lines[:2], "nothing\n", *lines[2:]]))
    without = shutil.copytree(finished_run, tmp_path / "without")
    (without / "log.jsonl").unlink()
    (tmp_path / "empty").mkdir()
    for folder, culprit in {"damaged": "line 3", "without": "log.jsonl", "empty": "empty", "absent": "absent"}.items():
        assert main(["runs", str(tmp_path / folder)]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert culprit in line
