"""Several runs beside one another: a row each, and their held-out errors over the steps in one chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unistd.files import kind
from unistd.report.charts import ACCENT, INK, MUTED, SECOND, THIRD, svg
from unistd.report.records import read_records
from unistd.training.checkpoint import CheckpointError
from unistd.training.run import Run
from unistd.training.settings import load_config

_LINES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Runs</title>
<style>:root {{ color-scheme: light dark; --ink: light-dark(#1b1d21, #e8e9ea); --muted: light-dark(#6a7078, #969ca4);
--line: light-dark(#e4e5e3, #2e3238); --accent: light-dark(#2563a8, #6ba8ea); --second: light-dark(#c2671a, #e59a52);
--good: light-dark(#1f7a4d, #57bd8a); }} body {{ max-width: 1000px; margin: 40px auto; font-family: sans-serif; }}
svg {{ width: 100%; height: auto; }}</style>
<h1>Runs</h1>
<p>Held-out squared error as a share of that of repeating the last frame, mean over the tasks of a run.</p>
{chart}
"""


@dataclass(frozen=True)
class RunSummary:
    """What one row says of a run.

    Attributes:
        errors: (step, mean over tasks of the held-out error as a share of repeating the last frame), step by step.
        seconds: of training. changed: when something was last written to its log.
    """

    folder: Path
    tasks: tuple[str, ...]
    step: int
    errors: tuple[tuple[int, float], ...]
    seconds: float
    changed: datetime


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders: each a run itself, or a folder of runs; raises CheckpointError where there is none."""
    found = []
    for folder in folders:
        if kind(folder) != "a folder":
            raise CheckpointError(f"{folder}: {kind(folder)}, expected the folder of a run, or one of runs")
        candidates = [folder] if Run(folder).config.exists() else sorted(folder.iterdir())
        runs = [Run(path) for path in candidates if Run(path).config.is_file()]
        if not runs:
            raise CheckpointError(f"{folder}: neither the folder of a run nor one of runs (no config.yaml)")
        found += runs
    return found


def summarise(run: Run) -> RunSummary:
    """What is known of a run; raises ValueError, CheckpointError or OSError naming the file."""
    tasks = load_config(run.config).tasks
    if kind(run.log) != "a file":
        raise CheckpointError(f"{run.log}: {kind(run.log)}, expected the log of a run")
    records = read_records(run.log, tasks)
    shares = ((record["step"], _share(record["val"])) for record in records if "val" in record)
    return RunSummary(
        run.folder,
        tuple(tasks),
        max(record["step"] for record in records),
        tuple((step, share) for step, share in shares if share is not None),
        max((record.get("seconds", 0.0) for record in records), default=0.0),
        datetime.fromtimestamp(run.log.stat().st_mtime, UTC),
    )


def _share(results: Mapping[str, Any]) -> float | None:
    """Mean of the tasks' errors; None where the last frame is right everywhere."""
    pairs = [(result["model"]["mse"], result["repeat_last"]["mse"]) for result in results.values()]
    shares = [model / last for model, last in pairs if model is not None and last]
    return sum(shares) / len(shares) if shares else None


def runs_page(summaries: Sequence[RunSummary]) -> str:
    """A page with the curves of all runs in one chart."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        colours = (ACCENT, SECOND, THIRD, INK, MUTED)
        styles = cycle([(colour, line) for line in _LINES for colour in colours])
        for summary, (colour, line) in zip(summaries, styles, strict=False):
            if summary.errors:
                label = str(summary.folder).encode("utf-8", "replace").decode().replace("$", r"\$")
                axis.plot(*zip(*summary.errors, strict=True), color=colour, linestyle=line, marker=".", label=label)
        axis.axhline(1.0, color=MUTED, linewidth=0.8)
        axis.set_xlabel("step")
        axis.set_yscale("log")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)

    return _PAGE.format(chart=svg(draw, (9.0, 4.6), "runs"))
