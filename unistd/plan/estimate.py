"""From the counts of a step to memory, time and reading rate on some number of GPUs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unistd.plan.gpus import EFFICIENCY, Gpu
from unistd.plan.step import (
    ACTIVATIONS,
    BLOCKS,
    COMPONENTS,
    FRAMES,
    GRADIENTS,
    MOMENTS,
    OPTIMIZER,
    WEIGHTS,
    WORKSPACE,
    Operator,
    Rehearsal,
    Step,
)
from unistd.tasks import TaskSpec
from unistd.training.config import Config
from unistd.training.data import steps_per_epoch, task_specs
from unistd.training.memory import count_parameters
from unistd.training.run import model_sizes

TRUNK, ADAPTERS, OUTSIDE = (
    "weights of the trunk",
    "weights of adapters and temporal modules",
    "weights of en- and decoders",
)
CONTEXT = "CUDA, its libraries and gaps"
MEMORY_PARTS = (TRUNK, ADAPTERS, OUTSIDE, GRADIENTS, MOMENTS, FRAMES, ACTIVATIONS, WORKSPACE, CONTEXT)
_GATHERED = 2  # blocks that FSDP holds whole at a time: the one that computes and the one that is fetched for it


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet says; all of it is printed with a plan.

    Attributes:
        efficiency: share of the peaks of arithmetic, memory and links that is reached.
        launch: seconds that an operator takes at the least, however small (eager PyTorch, no CUDA graph).
        context: bytes that CUDA, its libraries and the allocator's gaps take.
    """

    efficiency: float = EFFICIENCY
    launch: float = 10e-6
    context: float = 1.5e9


ASSUMED = Assumptions()


@dataclass(frozen=True)
class Variant:
    """One way to hold the model, and what a step takes then.

    Attributes:
        sharded: weights, gradients and moments in shards over the GPUs (FSDP2), else whole on each (DDP).
        checkpointing: blocks are computed again in the backward pass.
        memory: bytes a GPU at the fullest moment, by `MEMORY_PARTS`.
        largest: most samples of each task that a GPU has memory for; 0: not one.
        compute, communication: seconds of a mean step; one after the other, as if nothing overlapped.
        flops, bytes: of a mean step on one GPU.
    """

    sharded: bool
    checkpointing: bool
    memory: Mapping[str, float]
    largest: int
    compute: float
    communication: float
    flops: float
    bytes: float

    @property
    def seconds(self) -> float:
        """Of a mean step."""
        return self.compute + self.communication

    @property
    def total(self) -> float:
        """Bytes a GPU."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """What the training of a config takes on `gpus` GPUs.

    Attributes:
        samples: of all tasks together, a mean step on all GPUs.
        idle: GPUs for which a step has no sample.
        frame_bytes: of a mean step's samples on all GPUs, float32 as the loaders deliver them.
        steps: of an epoch.
        variants: with and without checkpointing, whole and (on several GPUs) in shards.
    """

    config: Config
    gpu: Gpu
    gpus: int
    assumptions: Assumptions
    per_gpu: int
    samples: float
    idle: int
    frame_bytes: float
    steps: int
    variants: tuple[Variant, ...]


class Planner:
    """Plans of one config for any GPU and number of them; the model is built once.

    Raises ValueError as `model_sizes` does.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.specs = {task: spec for task, spec in task_specs(config).items() if task in config.learned}
        self._rehearsal = Rehearsal(config)
        trunk, adapter = model_sizes(config)
        self._depth = trunk.depth
        every = count_parameters(config, task_specs(config), trunk, adapter)
        self._weights = {TRUNK: 4 * every.trunk, ADAPTERS: 4 * every.adapters, OUTSIDE: 4 * sum(every.outside.values())}
        trained = every.trained(config)
        self._trained = 4 * (trained.trunk + trained.adapters + sum(trained.outside.values()))  # bytes
        self._steps: dict[tuple[tuple[str, ...], int, bool], Step] = {}

    def plan(
        self,
        gpu: Gpu,
        gpus: int,
        assumptions: Assumptions = ASSUMED,
        batch_size: int | None = None,
        checkpointing: Sequence[bool] = (False, True),
    ) -> Plan:
        """A plan for `gpus` of a GPU.

        Args:
            batch_size: samples of each task in a pass on all GPUs together, in the place of the config's.
            checkpointing: variants to plan: without and with it.
        """
        train = self.config.train.model_copy(update={"batch_size": batch_size or self.config.train.batch_size})
        config = self.config.model_copy(update={"train": train})
        groups = self._groups(config)
        shares = [_share(group, train.batch_size, gpus) for group in groups]
        turns = sum(map(len, groups)) / len(groups[0])  # steps in which every task has its turn once
        each = train.batch_size * train.accumulate / turns
        samples = len(self.specs) * each
        frames = sum(map(_sample_bytes, self.specs.values())) * each
        variants = tuple(
            self._variant(gpu, gpus, assumptions, shares, turns, sharded, recomputes)
            for sharded in ((False, True) if gpus > 1 else (False,))
            for recomputes in checkpointing
        )
        idle = max(0, gpus - len(groups[0]) * train.batch_size)
        return Plan(
            config, gpu, gpus, assumptions, shares[0][1], samples, idle, frames, steps_per_epoch(config), variants
        )

    def _groups(self, config: Config) -> list[tuple[str, ...]]:
        """The tasks of steps that visit each task once, the largest together."""
        order = sorted(self.specs, key=lambda task: _sample_bytes(self.specs[task]), reverse=True)
        size = config.turns
        return [tuple(order[first : first + size]) for first in range(0, len(order), size)]

    def _variant(
        self,
        gpu: Gpu,
        gpus: int,
        assumptions: Assumptions,
        shares: list[tuple[tuple[str, ...], int]],
        turns: float,
        sharded: bool,
        checkpointing: bool,
    ) -> Variant:
        steps = [self._step(tasks, samples, False) for tasks, samples in shares]
        fullest, (tasks, samples) = max(zip(steps, shares, strict=True), key=lambda pair: sum(pair[0].memory.values()))
        if checkpointing:
            fullest = self._step(tasks, samples, True)
        calls = Counter()  # of a mean step
        for step in steps:
            for operator, count in step.operators.items():
                passes = 1 if operator[0] == OPTIMIZER else self.config.train.accumulate
                again = 2 if checkpointing and operator[0] == BLOCKS else 1
                calls[operator] += count * passes * again / turns
        return Variant(
            sharded,
            checkpointing,
            self._memory(fullest.memory, gpus, sharded, assumptions),
            self._largest(gpu, gpus, assumptions, tasks, samples, sharded, checkpointing),
            _seconds(calls, gpu, assumptions),
            self._communication(gpu, gpus, assumptions, sharded),
            sum(count * flops for (_, _, flops, _), count in calls.items()),
            sum(count * moved for (_, _, _, moved), count in calls.items()),
        )

    def _step(self, tasks: tuple[str, ...], samples: int, checkpointing: bool) -> Step:
        key = tasks, samples, checkpointing
        if key not in self._steps:
            self._steps[key] = self._rehearsal.step(*key)
        return self._steps[key]

    def _memory(
        self, parts: Mapping[str, float], gpus: int, sharded: bool, assumptions: Assumptions
    ) -> dict[str, float]:
        weights = sum(self._weights.values())
        memory = self._weights | {part: parts.get(part, 0.0) for part in COMPONENTS if part != WEIGHTS}
        if gpus > 1:  # the buckets in which gradients are summed up are there all the time, and are the gradients
            memory[GRADIENTS] = self._trained
        if sharded:
            block = (self._weights[TRUNK] + self._weights[ADAPTERS]) / self._depth
            whole = self._weights[OUTSIDE] + min(_GATHERED, self._depth) * block
            memory |= {part: memory[part] / gpus for part in (*self._weights, GRADIENTS, MOMENTS)}
            memory[WORKSPACE] += (whole + self._trained / weights * block) * (1 - 1 / gpus)
        return memory | {CONTEXT: assumptions.context}

    def _largest(
        self,
        gpu: Gpu,
        gpus: int,
        assumptions: Assumptions,
        tasks: tuple[str, ...],
        samples: int,
        sharded: bool,
        checkpointing: bool,
    ) -> int:
        """Each phase's peak is a straight line over the number of samples, of which two points are known."""
        one, two = (self._step(tasks, number, checkpointing).peaks for number in (samples, 2 * samples))
        most = math.inf
        for phase in one:
            first, second = (
                sum(self._memory(peaks[phase], gpus, sharded, assumptions).values()) for peaks in (one, two)
            )
            slope = (second - first) / samples
            free = gpu.memory - (first - slope * samples)
            most = min(most, free / slope if slope > 0 else math.inf if free >= 0 else 0)
        return max(0, math.floor(most))

    def _communication(self, gpu: Gpu, gpus: int, assumptions: Assumptions, sharded: bool) -> float:
        """Seconds in which gradients (and shards of weights, twice) go round a ring of all GPUs."""
        if gpus == 1:
            return 0.0
        moved = 2 * self._trained if not sharded else self._trained + 2 * sum(self._weights.values())
        speed = gpu.link if gpus <= gpu.node else min(gpu.link, gpu.network)
        return moved * (gpus - 1) / gpus / (assumptions.efficiency * speed)


def _share(tasks: tuple[str, ...], batch_size: int, gpus: int) -> tuple[tuple[str, ...], int]:
    """The tasks, and samples of each, of the GPU that has the most to do: no two differ by more than a sample."""
    each = -(-batch_size // gpus)
    samples = -(-len(tasks) * batch_size // gpus)
    return tasks[: -(-samples // each)], each


def _seconds(calls: Mapping[Operator, float], gpu: Gpu, assumptions: Assumptions) -> float:
    """Each operator takes what its arithmetic or its traffic takes, whichever is longer, and no less than a launch."""
    reached, total = assumptions.efficiency, 0.0
    for (_, is_half, flops, moved), count in calls.items():
        arithmetic = flops / (reached * (gpu.bf16 if is_half else gpu.fp32))
        total += count * max(arithmetic, moved / (reached * gpu.bandwidth), assumptions.launch)
    return total


def _sample_bytes(spec: TaskSpec) -> int:
    return 4 * (math.prod(spec.input_shape) + math.prod(spec.target_shape))
