"""The error that a run's losses are divided by: that of repeating the last frame, on training samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from unistd.masks import fill_missing
from unistd.metrics import ForecastMetrics, repeat_last
from unistd.tasks import TaskSpec
from unistd.tasks.data import spread
from unistd.training.data import MixedDataset

FIRST_SAMPLES = 64
SPREAD_SAMPLES = (256, 1024)  # tried in turn where the first ones never change


def repeat_last_errors(
    dataset: MixedDataset, specs: Mapping[str, TaskSpec], say: Callable[[str], None] = lambda line: None
) -> dict[str, float]:
    """MSE of repeating the last frame, per task, on its first training samples.

    Where these never change, or nothing of them was measured, as in a record that begins with days of zeros, on samples
    spread over all; `say` receives a line that tells so.

    Raises:
        ValueError: naming the task, where that error is 0 on these too, or not a number.
    """
    return {task: _error(dataset, spec, say) for task, spec in specs.items()}


def _error(dataset: MixedDataset, spec: TaskSpec, say: Callable[[str], None]) -> float:
    count = len(dataset.datasets[spec.name])
    first = f"its first {min(FIRST_SAMPLES, count)} training samples"
    error, where = _measure(dataset, spec, range(min(FIRST_SAMPLES, count))), first
    for samples in SPREAD_SAMPLES:
        if error == 0 and where != f"all {count} training samples":
            where = f"{samples} samples spread over all {count}" if samples < count else f"all {count} training samples"
            error = _measure(dataset, spec, spread(count, samples))
    measured = " that was measured" if spec.missing else ""
    if not (math.isfinite(error) and error > 0):
        raise ValueError(
            f"task {spec.name!r}: the error of repeating the last frame is {error} on {where}, expected a positive "
            f"number: {f'nothing{measured} changes there' if error == 0 else 'they hold NaN or Inf'}"
        )
    if where != first:
        say(f"task {spec.name!r}: nothing{measured} changes in {first}; the error of repeating is that on {where}")
    return error


def _measure(dataset: MixedDataset, spec: TaskSpec, indices: Iterable[int]) -> float:
    """The error on some samples: 0 where nothing was measured, NaN or Inf where frames hold it that may not."""
    metrics = ForecastMetrics(("mse",))
    for index in indices:
        inputs, targets = (frames[None] for frames in dataset[spec.name, int(index)][1])
        if spec.missing:
            inputs = fill_missing(inputs)
        if not inputs.isfinite().all() or targets.isinf().any() or (targets.isnan().any() and not spec.missing):
            return math.nan
        metrics.update(repeat_last(inputs, targets.shape[1]), targets)
    return metrics.compute().values["mse"] or 0.0
