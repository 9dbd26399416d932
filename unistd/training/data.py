"""Batches that mix tasks, drawn by a rule whose whole state is the number of the step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unistd.messages import printable
from unistd.metrics import SMALLEST_SIDE
from unistd.tasks import DataFileError, Task, TaskSpec, build_dataset, get_task
from unistd.tasks.files import in_words, list_folder
from unistd.tasks.own import own_task
from unistd.training.config import Config, DataConfig
from unistd.training.loading import Loader
from unistd.training.networks import with_networks
from unistd.training.processes import ALONE, Processes
from unistd.training.sampling import Proportional, RoundRobin, Schedule, permutation, shares_of

Sample = tuple[Tensor, Tensor]  # inputs (Tin, C, H, W), targets (Tout, C, H, W), float32 in [0, 1]
Batch = dict[str, Sample]  # per task, both with the batch in front


def run_tasks(config: Config) -> dict[str, Task]:
    """The tasks of a run, in its order."""
    own = config.own_tasks
    return {name: own_task(name, own[name]) if name in own else get_task(name) for name in config.tasks}


def task_specs(config: Config) -> dict[str, TaskSpec]:
    """The tasks of a run, in its order, with the changes of `task_options`.

    Raises ValueError, naming the key, for options of a task that is not in the run, or that do not fit together.
    """
    specs = {name: task.spec for name, task in run_tasks(config).items()}
    for name, options in config.task_options.items():
        try:
            spec = specs[name] if name in specs else get_task(name).spec
            if name not in specs:
                raise ValueError(f"not one of the tasks of this run ({', '.join(specs)})")
            specs[name] = spec.replace(**options.model_dump(exclude_none=True))
        except ValueError as error:
            raise ValueError(f"task_options.{name:.40}: {error}") from None
    for name, spec in specs.items():
        own = name in config.own_tasks and name not in config.task_options
        place = f"{'own_tasks' if own else 'task_options'}.{name}"
        if {"ssim", "ssim_openstl"} & set(spec.metrics) and min(spec.height, spec.width) < SMALLEST_SIDE:
            frame, least = f"{spec.height} x {spec.width}", f"{SMALLEST_SIDE} x {SMALLEST_SIDE}"
            raise ValueError(f"{place}: frames of {frame} pixels, expected at least {least} for SSIM, or other metrics")
        specs[name] = with_networks(spec, config, place)
    return specs


def split_datasets(config: Config, split: str) -> dict[str, Dataset]:
    """One data set per task for `split` ("train", "val", "test"): of the files below `data.root`, or generated.

    Raises DataFileError where there is a root without files of a task that `data.generated` does not name, or a task of
    one's own has none.
    """
    data, tasks = config.data, run_tasks(config)
    length = {"train": data.train_samples, "val": data.val_samples, "test": data.test_samples}[split]
    roots = data_roots(tasks, data)
    datasets = {}
    for name, spec in task_specs(config).items():
        root = roots.get(name)
        whole = split == "train" and root is not None
        datasets[name] = build_dataset(
            spec, split, root=root, length=None if whole else length, seed=config.train.seed, task=tasks[name]
        )
    return datasets


def data_roots(tasks: Mapping[str, Task], data: DataConfig) -> dict[str, str]:
    """The root of each task whose data are files; raises DataFileError unless all others are to be generated."""
    # the files of a task of one's own lie below data.root, or have whole paths
    own = {name: data.root or "/" for name, task in tasks.items() if task.generator is None}
    if data.root is None:
        return own
    found = [name for name, task in tasks.items() if name not in own and task.find(data.root) is not None]
    lacking = [name for name in tasks if name not in own and name not in found]
    if data.generated != "all" and (lacking := [name for name in lacking if name not in data.generated]):
        names, kind = ", ".join(lacking), "task" if len(lacking) == 1 else "tasks"
        there = in_words(list_folder(Path(data.root))[:5])
        raise DataFileError(
            f"data.root {printable(data.root)}: found no files of {kind} {names} (but {there}); "
            f"data.generated=[{','.join(lacking)}] asks for generated data"
        )
    return own | dict.fromkeys(found, data.root)


class MixedDataset(Dataset):
    """The data sets of all tasks as one, indexed by (task, index); keeps samples in memory if asked to."""

    def __init__(self, datasets: Mapping[str, Dataset], cache: bool = False) -> None:
        self.datasets = dict(datasets)
        self._kept: dict[tuple[str, int], Sample] | None = {} if cache else None

    def __getitem__(self, key: tuple[str, int]) -> tuple[str, Sample]:
        task, index = key
        if self._kept is None:
            return task, self.datasets[task][index]
        if key not in self._kept:
            self._kept[key] = self.datasets[task][index]
        return task, self._kept[key]


class MixedBatchSampler:
    """Which samples make up each step, as a function of (seed, step) alone.

    A step has `tasks_per_step` turns of tasks. A task walks through its own data set in a new random order on each
    pass.

    Args:
        lengths: samples in the data set of each task.
        batch_size: samples of a turn.
        tasks_per_step: turns in a step; 0: as many as tasks.
        steps: iteration covers these steps.
        schedule: which task has which turn; None: each once in every round.
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        batch_size: int,
        tasks_per_step: int,
        seed: int,
        steps: range,
        schedule: Schedule | None = None,
    ) -> None:
        self.tasks = list(lengths)
        if tasks_per_step > len(self.tasks):
            raise ValueError(f"train.tasks_per_step is {tasks_per_step}, but there are {len(self.tasks)} tasks")
        if empty := [task for task, length in lengths.items() if length == 0]:
            raise ValueError(f"task {empty[0]!r}: its training data set is empty")
        self.lengths, self.batch_size, self.seed, self.steps = dict(lengths), batch_size, seed, steps
        self.tasks_per_step = tasks_per_step or len(self.tasks)
        self.schedule = schedule or RoundRobin(len(self.tasks), seed)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        return map(self.batch, self.steps)

    def batch(self, step: int) -> list[tuple[str, int]]:
        """The (task, index) pairs of a step."""
        turns = range(step * self.tasks_per_step, (step + 1) * self.tasks_per_step)
        keys = []
        for task, visit in sorted(self.schedule.turns(turns)):
            name = self.tasks[task]
            for draw in range(visit * self.batch_size, (visit + 1) * self.batch_size):
                passes, position = divmod(draw, self.lengths[name])
                keys.append((name, int(permutation(self.lengths[name], self.seed, task, passes)[position])))
        return keys


class SharedBatches:
    """The passes of a sampler's steps, of which each process takes its share: every sample of a step is in one pass of
    one process, and their sizes differ by one at the most.

    Args:
        sampler: which samples make up each step.
        accumulate: passes in a step.
        processes: this process among those that share the steps.
    """

    def __init__(self, sampler: MixedBatchSampler, accumulate: int, processes: Processes) -> None:
        self.sampler, self.accumulate, self.processes = sampler, accumulate, processes

    def __len__(self) -> int:
        return len(self.sampler) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        rank, world = self.processes.rank, self.processes.world
        for keys in self.sampler:
            for part in range(self.accumulate):
                yield keys[part * world + rank :: self.accumulate * world]


def collate(samples: Sequence[tuple[str, Sample]]) -> Batch:
    """Groups (task, sample) pairs by task and stacks them."""
    groups: dict[str, list[Sample]] = {}
    for task, sample in samples:
        groups.setdefault(task, []).append(sample)
    return {task: tuple(map(torch.stack, zip(*group, strict=True))) for task, group in groups.items()}


def train_loader(config: Config, steps: range, processes: Processes = ALONE, balance: Schedule | None = None) -> Loader:
    """Loads this process's share of the mixed batches of `steps`, pass by pass; the same for any number of workers.

    balance: the schedule of a training by 'loss_balanced' sampling, which knows no steps beyond the epoch that it is
    at: see `passes_of`.
    """
    datasets, train = split_datasets(config, "train"), config.train
    lengths = {name: len(datasets[name]) for name in config.learned}
    samples = train.batch_size * train.accumulate
    if train.sampling in ("proportional", "temperature"):
        balance = Proportional(shares_of(train, lengths), train.seed)
    sampler = MixedBatchSampler(lengths, samples, train.tasks_per_step, train.seed, steps, balance)
    return Loader(
        MixedDataset(datasets, config.data.cache),
        config.data.workers,
        collate,
        batch_sampler=SharedBatches(sampler, train.accumulate, processes),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(config.train.seed),  # loading leaves the global random state alone
    )


def passes_of(loader: Loader, steps: range) -> Iterator[Batch]:
    """The passes of some steps by a loader that `train_loader` made."""
    loader.batch_sampler.sampler.steps = steps
    return iter(loader)


def steps_of(batches: Iterator[Batch], accumulate: int) -> Iterator[tuple[list[Batch], float]]:
    """The passes of each step with the seconds that they were waited for."""
    begin = time.perf_counter()
    while passes := list(islice(batches, accumulate)):
        yield passes, time.perf_counter() - begin
        begin = time.perf_counter()


def steps_per_epoch(config: Config) -> int:
    """Steps in which a task sees `epoch_samples` samples (rounded up), on the mean of all tasks."""
    samples = config.train.batch_size * config.train.accumulate
    turns = -(-config.train.epoch_samples // samples) * len(config.learned)
    return -(-turns // config.turns)
