"""Where a run's data come from and what their values were divided by: the same for as long as the run lives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.data import Dataset

from unistd.training.checkpoint import CheckpointError


def source_kinds(datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """Where each task's data come from: "generated" or "files"."""
    return {task: "generated" if data.source == "generated" else "files" for task, data in datasets.items()}


def scales_of(datasets: Mapping[str, Dataset]) -> dict[str, float]:
    """What each task's values were divided by."""
    return {task: float(data.spec.scale) for task, data in datasets.items()}


def check_data(
    sources: Mapping[str, str], scales: Mapping[str, float], datasets: Mapping[str, Dataset], checkpoint: Path
) -> None:
    """Raises CheckpointError where a task was trained on files and its data are generated now, or the other way, or
    where its values are divided by another number than those that it was trained on.

    sources, scales: of the checkpoint, as `source_kinds` and `scales_of` give them; empty in those of earlier releases.
    """
    kinds, now = source_kinds(datasets), scales_of(datasets)
    for task in datasets:
        if sources.get(task, kinds[task]) != kinds[task]:
            raise CheckpointError(
                f"{checkpoint}: task {task!r} was trained on data of kind {sources[task]!r}, below data.root are now"
                f" {kinds[task]!r}"
            )
        if scales.get(task, now[task]) != now[task]:
            raise CheckpointError(
                f"{checkpoint}: task {task!r} was trained on values divided by {scales[task]:g}, those below data.root"
                f" are now divided by {now[task]:g}: other files"
            )
