"""Held-out results of a model and of the baseline "repeat the last frame", per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unistd.metrics import ForecastMetrics, repeat_last
from unistd.training.config import Config
from unistd.training.data import split_datasets, task_specs

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

    `advance(task)` is called after each batch, for a progress bar.
    """
    training = model.training
    model.eval()
    results = {}
    for task, dataset in datasets.items():
        scores = {"model": ForecastMetrics(), "repeat_last": ForecastMetrics()}
        for inputs, targets in DataLoader(dataset, batch_size, num_workers=workers, generator=torch.Generator()):
            scores["model"].update(model(to_device(inputs), task=task), targets)
            scores["repeat_last"].update(repeat_last(inputs, targets.shape[1]), targets)
            advance(task)
        results[task] = {name: score.compute() for name, score in scores.items()}
    model.train(training)
    return results


def held_out(config: Config, split: str) -> dict[str, Dataset]:
    """The data sets of a split of all tasks of a run."""
    return split_datasets(task_specs(config), split, config.data, config.train.seed)


def tasks_beaten(results: Results) -> list[str]:
    """Tasks on which the model's MSE is below that of repeating the last frame."""
    return [task for task, result in results.items() if result["model"]["mse"] < result["repeat_last"]["mse"]]
