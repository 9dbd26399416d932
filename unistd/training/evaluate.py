"""Held-out results of a model and of the baseline "repeat the last frame", per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unistd.metrics import ForecastMetrics, repeat_last
from unistd.training.config import Config
from unistd.training.data import split_datasets
from unistd.training.loading import Loader

Results = dict[str, dict[str, dict[str, float]]]  # task -> "model" or "repeat_last" -> metric -> value


@torch.no_grad()
def evaluate(
    model: nn.Module,
    datasets: Mapping[str, Dataset],
    batch_size: int,
    workers: int = 0,
    to_device: Callable[[Tensor], Tensor] = lambda frames: frames,
    advance: Callable[[str], None] = lambda task: None,
) -> Results:
    """Measures `model` and the repeated last frame on each task's data set; leaves mode and random state as they were.

    `advance(task)` is called after each batch: it may show progress, or raise to end the evaluation there.
    """
    training = model.training
    model.eval()
    results = {}
    try:
        for task, dataset in datasets.items():
            scores = {"model": ForecastMetrics(), "repeat_last": ForecastMetrics()}
            loader = Loader(dataset, workers, batch_size=batch_size, generator=torch.Generator())
            with closing(iter(loader)) as batches:
                for inputs, targets in batches:
                    scores["model"].update(model(to_device(inputs), task=task), targets)
                    scores["repeat_last"].update(repeat_last(inputs, targets.shape[1]), targets)
                    advance(task)
            results[task] = {name: score.compute() for name, score in scores.items()}
    finally:
        model.train(training)
    return results


def held_out(config: Config, split: str) -> dict[str, Dataset]:
    """The data sets of a split of all tasks of a run."""
    return split_datasets(config, split)


def tasks_beaten(results: Results) -> list[str]:
    """Tasks on which the model's MSE is below that of repeating the last frame."""
    return [task for task, result in results.items() if result["model"]["mse"] < result["repeat_last"]["mse"]]
