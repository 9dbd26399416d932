"""Where a run's data come from and what their values mean: the same for as long as the run lives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from unistd.training.checkpoint import CheckpointError

Unit = dict[str, float | str | bool]


def source_kinds(datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """Where each task's data come from: "generated" or "files"."""
    return {task: "generated" if data.source == "generated" else "files" for task, data in datasets.items()}


def units_of(datasets: Mapping[str, Dataset]) -> dict[str, Unit]:
    """What each task's values mean: "scale", "offset", "unit" and "missing" of its `TaskSpec`."""
    specs = {task: data.spec for task, data in datasets.items()}
    return {
        task: {"scale": float(s.scale), "offset": float(s.offset), "unit": s.unit, "missing": s.missing}
        for task, s in specs.items()
    }


def stored_units(state: Mapping[str, Any]) -> dict[str, Unit]:
    """What a checkpoint says of the units; of releases that kept the scale alone, that; of earlier ones, nothing."""
    scales = state.get("scales", {})
    return state.get("units", {task: {"scale": scale} for task, scale in scales.items()})


def check_data(
    sources: Mapping[str, str], units: Mapping[str, Unit], datasets: Mapping[str, Dataset], checkpoint: Path
) -> None:
    """Raises CheckpointError where a task was trained on files and its data are generated now, or the other way, or
    where its values mean something else than those that it was trained on.

    sources, units: of the checkpoint, as `source_kinds` and `stored_units` give them.
    """
    kinds, now = source_kinds(datasets), units_of(datasets)
    for task in datasets:
        if sources.get(task, kinds[task]) != kinds[task]:
            raise CheckpointError(
                f"{checkpoint}: task {task!r} was trained on data of kind {sources[task]!r}, below data.root are now"
                f" {kinds[task]!r}"
            )
        for name, value in units.get(task, {}).items():
            if now[task][name] != value:
                raise CheckpointError(
                    f"{checkpoint}: task {task!r} was trained on values of {name} {value!r}, those below data.root now"
                    f" have {now[task][name]!r}: other files"
                )
