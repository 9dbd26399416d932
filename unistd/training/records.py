"""The results in a run's metrics.json, checked before anything of them is shown."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from unistd.files import read_text
from unistd.metrics import measure_of
from unistd.training.checkpoint import CheckpointError
from unistd.training.evaluate import BASELINES, Leads, Results
from unistd.training.expected import Maybe, compare, whole
from unistd.training.run import Run

_LONGEST = 1024  # frames of a forecast


@dataclass(frozen=True)
class RunResults:
    """A run's results."""

    values: Results
    leads: Leads
    """per lead time; empty in those of earlier releases"""
    mean_samples: Mapping[str, int]
    """training samples that each task's training mean is of; empty likewise"""
    before: Mapping[str, Mapping[str, float | None]]
    """the model's results before the first step, of the tasks that another run had learned"""


def read_results(run: Run, tasks: Iterable[str], step: int) -> RunResults:
    """The results in a run's metrics.json.

    Raises CheckpointError where the run was not evaluated, or not after this `step`, and where the file is damaged or
    of other tasks; OSError where it cannot be read.
    """
    again = f"`unistd evaluate {run.folder}` makes them"
    try:
        record = json.loads(read_text(run.metrics))
    except FileNotFoundError:
        raise CheckpointError(f"{run.metrics}: no results yet, {again}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{run.metrics}: damaged, not JSON ({error})") from None
    tasks = list(tasks)
    samples = {task: {"samples": whole(1, sys.maxsize)} for task in tasks}
    others = dict.fromkeys(("split", "samples", "source", "units"), Maybe(lambda value: None))
    expected = others | {
        "step": Maybe(whole(0, sys.maxsize)),
        "training_mean": Maybe(samples),
        "tasks": per_forecaster(record, "tasks", tasks, value_fault),
        "before": Maybe({task: Maybe(values_fault) for task in tasks}),
        "per_lead": Maybe(per_forecaster(record, "per_lead", tasks, _leads_fault)),
    }
    compare(record, expected, "", f"{run.metrics}: damaged")
    if record.get("step", step) != step:  # earlier releases do not say
        raise CheckpointError(
            f"{run.metrics}: results after step {record['step']}, the checkpoint is of step {step}; {again} anew"
        )
    mean = {task: about["samples"] for task, about in record.get("training_mean", {}).items()}
    return RunResults(record["tasks"], record.get("per_lead", {}), mean, record.get("before", {}))


def per_forecaster(
    record: Any, key: str, tasks: Iterable[str], fault: Callable[[str, Any], str | None]
) -> dict[str, dict[str, Any]]:
    """What is expected in `record[key]`: task -> model and baselines -> the values that are there, of known measures.

    "mse" of model and repeated last frame must be there; which others are depends on the task and on the release.
    """

    def values(task: str, forecaster: str) -> dict[str, Any]:
        found = record
        for part in (key, task, forecaster):
            found = found.get(part) if isinstance(found, dict) else None
        known = [name for name in found or () if measure_of(name)] if isinstance(found, dict) else []
        return {name: partial(fault, name) for name in dict.fromkeys(["mse", *known])}

    return {
        task: {
            name: values(task, name) if name in ("model", "repeat_last") else Maybe(values(task, name))
            for name in ("model", *BASELINES)
        }
        for task in tasks
    }


def value_fault(name: str, value: Any) -> str | None:
    """Expects a value of the measure `name`: a number that it can be, or null where it may be undefined."""
    least = measure_of(name).least
    if value is None and name != "mse":
        return None
    if type(value) is float and math.isfinite(value) and value >= least:
        return None
    return "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"


def values_fault(values: Any) -> str | None:
    """Expects values by the names of measures, "mse" among them."""
    right = isinstance(values, dict) and "mse" in values and all(map(measure_of, values))
    if right and all(value_fault(name, value) is None for name, value in values.items()):
        return None
    return "finite numbers by the names of measures, mse among them"


def _leads_fault(name: str, values: Any) -> str | None:
    right = isinstance(values, list) and len(values) <= _LONGEST
    if right and all(value is None or value_fault(name, value) is None for value in values):
        return None
    return f"a list of at most {_LONGEST} finite numbers or null"
