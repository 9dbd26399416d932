"""What a run that starts from another one does to the tasks that were learned before: their errors then and now.

Before the first step the tasks that were taken over are measured on their test split, which gives the results of the
run that they came from, on the very samples of this one. They are kept beside the run, and its results are compared
with them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from unistd.files import kind, read_text, write_text
from unistd.training.checkpoint import CheckpointError
from unistd.training.evaluate import Results
from unistd.training.expected import compare, whole
from unistd.training.records import values_fault

Before = dict[str, dict[str, float | None]]  # task -> measure -> value


def write_before(path: Path, samples: Mapping[str, int], results: Results) -> None:
    """Keeps the model's results before the first step, and of how many samples of each task they are."""
    tasks = {task: result["model"] for task, result in results.items()}
    write_text(path, json.dumps({"samples": dict(samples), "tasks": tasks}, indent=2) + "\n")


def read_before(path: Path, samples: Mapping[str, int]) -> Before:
    """What `write_before` kept of the tasks that are measured on as many `samples` now; nothing where it kept nothing.

    Raises CheckpointError where the file is damaged; OSError where it cannot be read.
    """
    if kind(path) == "nothing":
        return {}
    where = f"{path}: damaged"
    try:
        record = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{where}, not JSON ({error})") from None
    tasks = record.get("tasks") if isinstance(record, dict) else None
    known = [task for task in samples if isinstance(tasks, dict) and task in tasks]
    expected = {"samples": dict.fromkeys(known, whole(1, sys.maxsize)), "tasks": dict.fromkeys(known, values_fault)}
    compare(record, expected, "", where)
    return {task: tasks[task] for task in known if record["samples"][task] == samples[task]}


def growths(before: Mapping[str, Mapping[str, float | None]], results: Results) -> dict[str, float | None]:
    """By how much the squared error of each task that was learned before has grown, as a share of what it was; None
    where it was 0."""
    pairs = {task: (values["mse"], results[task]["model"]["mse"]) for task, values in before.items()}
    return {task: now / then - 1 if then else None for task, (then, now) in pairs.items()}


def forgetting_line(before: Mapping[str, Mapping[str, float | None]], results: Results) -> str:
    """The same in words."""
    grown = growths(before, results)
    known = [share for share in grown.values() if share is not None]
    each = ", ".join(f"{task} {'-' if share is None else f'{share:+.1%}'}" for task, share in grown.items())
    mean = f"; mean {sum(known) / len(known):+.1%}" if known else ""
    return f"squared error of what was learned before, against that before the first step: {each}{mean}"
