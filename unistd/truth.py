"""How far a forecast is from what came to be, per lead time, by the task's own measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from unistd.forecast import SAMPLES, read_samples
from unistd.metrics import Scores
from unistd.tasks import TaskSpec
from unistd.tasks.npy import NpyArray, open_npy
from unistd.training.evaluate import metrics_of


def open_truth(path: str, forecast: tuple[int, ...]) -> NpyArray:
    """A .npy file of the frames that were forecast, of the forecast's shape; what they hold is read later.

    Raises ValueError: not such a file, or of another shape.
    """
    truth = open_npy(Path(path))
    if truth.shape != forecast:
        raise ValueError(f"{path}: expected the forecast's shape {forecast}, found {str(truth.shape)[:100]}")
    return truth


def measure(forecast: NpyArray, truth: NpyArray, spec: TaskSpec, physical: bool) -> Scores:
    """The measures of a task, but those that take a network, of a forecast.

    Args:
        physical: forecast and truth are in the unit of the spec, not in its [0, 1].

    Raises ValueError where the truth holds NaN that the task may not have, or numbers of another range.
    """
    metrics, low, width = metrics_of(spec, {}), *((spec.offset, spec.scale) if physical else (0.0, 1.0))
    count = 1 if len(truth.shape) == 4 else truth.shape[0]
    for start in range(0, count, SAMPLES):
        stop = min(start + SAMPLES, count)
        found = forecast.rows(start, stop) if len(truth.shape) == 5 else forecast.rows(0, truth.shape[0])[None]
        values = torch.from_numpy((found.astype(np.float64) - low) / width)
        metrics.update(values, read_samples(truth, start, stop, spec, physical))
    return metrics.compute()


def lead_table(scores: Scores, spec: TaskSpec) -> Table:
    """A row a frame of the forecast: the errors in the task's unit, and its other measures; then those of all."""
    names = [name for name in scores.values if _is_shown(name)]
    frames = len(scores.leads["mse"])
    table = Table(box=None, header_style="dim")
    table.add_column("frame", justify="right")
    for name in names:
        table.add_column(_title(name, spec.unit), justify="right", overflow="fold")
    for frame in range(frames):
        values = (scores.leads[name] for name in names)  # some are of whole clips, or of months taken together
        table.add_row(str(frame + 1), *(_text(of[frame] if len(of) == frames else None) for of in values))
    table.add_row("all", *(_text(scores.values[name]) for name in names))
    return table


def _is_shown(name: str) -> bool:
    """Of the three conventions of a pixel's error, that in the task's unit."""
    return name.endswith("_physical") or name.split("_")[0] not in ("mse", "mae", "rmse")


def _title(name: str, unit: str) -> str:
    error, _, rest = name.partition("_")
    if rest != "physical":
        return name
    squared = "squared " if error == "mse" else ""
    return f"{error}, {squared}{unit}" if unit else error


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
