"""Held-out results of a model and of the baselines, per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from unistd.masks import fill_missing
from unistd.metrics import NETWORKS, Baseline, ForecastMetrics, Scores, TrainingMean, linear, repeat_last
from unistd.tasks import TaskSpec
from unistd.tasks.data import spread
from unistd.training.config import Config
from unistd.training.data import split_datasets
from unistd.training.loading import Loader
from unistd.training.processes import ALONE, Processes

BASELINES = ("repeat_last", "training_mean", "linear")  # in the order of the tables; the first is always there
MEAN_SAMPLES = 64  # training samples that the training mean is taken over, spread evenly
Results = dict[str, dict[str, dict[str, float | None]]]  # task -> "model" or a baseline -> value's name -> value
Leads = dict[str, dict[str, dict[str, list[float | None]]]]  # the same, value's name -> values per lead time
Evaluation = dict[str, dict[str, Scores]]  # task -> "model" or a baseline -> scores


@torch.no_grad()
def evaluate(
    model: nn.Module,
    datasets: Mapping[str, Dataset],
    batch_size: int,
    workers: int = 0,
    to_device: Callable[[Tensor], Tensor] = lambda frames: frames,
    advance: Callable[[str], None] = lambda task: None,
    baselines: Callable[[str], dict[str, Baseline]] = lambda task: {},
    processes: Processes = ALONE,
    networks: Mapping[str, nn.Module] = {},
) -> Evaluation:
    """Measures `model`, the repeated last frame and other `baselines` on each task's data set.

    Mode and random state stay as they were. `advance(task)` is called after each batch: it may show progress, or raise
    to end the evaluation there. `baselines(task)` is called before the first batch of a task. Of several `processes`,
    which all call this, each measures its share of the samples, as many batches as the others; all get all results.
    Measures that take a network are left out where `networks` has none of theirs.

    Raises:
        ValueError: naming the task: a forecast that holds NaN or Inf, frames that hold such where the task's may not,
            or a data set in which no target pixel was measured.
    """
    training = model.training
    model.eval()
    results = {}
    try:
        for task, dataset in datasets.items():
            forecasters = {
                "model": lambda inputs, frames_out, task=task: model(to_device(inputs), task=task),
                "repeat_last": lambda *arguments: repeat_last(*arguments),
            } | baselines(task)
            try:
                results[task] = _measure(
                    forecasters, dataset, batch_size, workers, lambda task=task: advance(task), processes, networks
                )
            except ValueError as error:
                raise ValueError(f"task {task!r}: {error}") from None
    finally:
        model.train(training)
    return results


def _measure(
    forecasters: Mapping[str, Baseline],
    dataset: Dataset,
    batch_size: int,
    workers: int,
    advance: Callable[[], None],
    processes: Processes,
    networks: Mapping[str, nn.Module],
) -> dict[str, Scores]:
    spec: TaskSpec = dataset.spec
    meters = {name: metrics_of(spec, networks) for name in forecasters}
    shares = [range(rank, len(dataset), processes.world) for rank in range(processes.world)]
    mine = Subset(dataset, shares[processes.rank])
    loader = Loader(mine, workers, batch_size=batch_size, generator=torch.Generator())
    with closing(iter(loader)) as batches:
        for inputs, targets in batches:
            _check_frames(spec, inputs, targets)
            inputs = fill_missing(inputs) if spec.missing else inputs
            for name, forecast in forecasters.items():
                meters[name].update(forecast(inputs, targets.shape[1]), targets)
            advance()
    for _ in range(len(loader), -(-len(shares[0]) // batch_size)):
        # the others have one more: a model in shards is gathered by all or by none
        forecasters["model"](torch.zeros(0, *spec.input_shape), spec.frames_out)
        advance()
    first, *others = processes.gather(meters)
    for name, meter in first.items():
        for other in others:
            meter.merge(other[name])
    scores = {name: meter.compute() for name, meter in first.items()}
    if scores["model"].values["mse"] is None:
        raise ValueError(f"in none of its {len(dataset)} samples a target pixel was measured: all are NaN")
    return scores


def metrics_of(spec: TaskSpec, networks: Mapping[str, nn.Module]) -> ForecastMetrics:
    """The measures of a task, before the first batch, but those that take a network that is not at hand."""
    names = [name for name in spec.metrics if name not in NETWORKS or name in networks]
    return ForecastMetrics(names, spec.scale, spec.offset, spec.thresholds, networks)


def _check_frames(spec: TaskSpec, *frames: Tensor) -> None:
    wrong = torch.isinf if spec.missing else lambda part: ~torch.isfinite(part)
    if any(bool(wrong(part).any()) for part in frames):
        held = "Inf" if spec.missing else "NaN or Inf"
        raise ValueError(f"its frames hold {held}, expected {'numbers or NaN' if spec.missing else 'numbers'}")


def baselines_of(spec: TaskSpec, training: Dataset) -> dict[str, Baseline]:
    """The baselines beside the repeated last frame: the mean of the training frames, and where two frames are given,
    the line through the last two."""
    mean = TrainingMean()
    for index in spread(len(training), MEAN_SAMPLES):
        mean.add(torch.cat(training[int(index)]))
    return {"training_mean": mean} | ({"linear": linear} if spec.frames_in > 1 else {})


def values_of(evaluation: Evaluation) -> Results:
    """The values over the whole set."""
    return {task: {name: scores.values for name, scores in result.items()} for task, result in evaluation.items()}


def leads_of(evaluation: Evaluation) -> Leads:
    """The values per lead time."""
    return {task: {name: scores.leads for name, scores in result.items()} for task, result in evaluation.items()}


def held_out(config: Config, split: str) -> dict[str, Dataset]:
    """The data sets of a split of all tasks of a run."""
    return split_datasets(config, split)


def held_out_sizes(config: Config) -> dict[str, dict[str, int]]:
    """How many samples of each task are measured, by split: of "val" where there are validations, and of "test"."""
    splits = (*(["val"] if config.data.val_samples else []), "test")
    datasets = {split: held_out(config, split) for split in splits}
    return {task: {split: len(datasets[split][task]) for split in splits} for task in config.tasks}


def tasks_beaten(results: Results) -> list[str]:
    """Tasks on which the model's MSE is below that of repeating the last frame."""
    return [task for task, result in results.items() if result["model"]["mse"] < result["repeat_last"]["mse"]]
