"""The loss of a step, and its gradient: of all samples of the step, in however many passes and processes they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from unistd.masks import masked_square_error
from unistd.tasks import TaskSpec
from unistd.training.config import Config
from unistd.training.data import Batch
from unistd.training.precision import LossScale
from unistd.training.processes import Processes
from unistd.training.state import random_state, set_random_state


@dataclass(frozen=True)
class Errors:
    """Squared errors of the tasks of a step, of all processes.

    Attributes:
        sums: (tasks,), on the device.
        measured: target values of each task, in that order.
    """

    sums: Tensor
    measured: dict[str, int]

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """Mean errors of the sums as they were read; of tasks of which something was measured."""
        pairs = zip(self.measured.items(), sums, strict=True)
        return {task: total / count for (task, count), total in pairs if count}


class Objective:
    """The sum over the tasks of a step of their mean squared errors, each over what was measured, times a weight and
    the task's share of the step's samples: the mean over the tasks, unless one has more turns than another.

    A task's mean is that of all its samples in the step. So a pass or a process weighs what it holds, and one without a
    sample of some task, or where nothing was measured, is right as well. All passes of a step draw the same ranks.

    Args:
        model: as `fabric` has set it up.
        specs: of all tasks, in the order in which every process goes through them.
        weights: of the tasks.
        processes: those that share each pass; all make the same calls.
        scale: of the loss, which gradients keep.
    """

    def __init__(
        self,
        model: nn.Module,
        fabric: Fabric,
        specs: Mapping[str, TaskSpec],
        weights: Mapping[str, float],
        processes: Processes,
        scale: LossScale,
    ) -> None:
        self.model, self.fabric, self.specs = model, fabric, specs
        self.weights, self.processes, self.scale = weights, processes, scale

    def backward(self, passes: Sequence[Batch], penalty: Callable[[], Tensor | float]) -> Errors:
        """Adds the gradient of the objective plus `penalty()` to the parameters', and returns the tasks' errors.

        Nothing is read from the device.

        passes: this process's part of the step. Parameters of tasks that the step does not have get no gradient.
        """
        samples, measured = self._counts(passes)
        step = [task for task in self.specs if samples[task]]
        mean = sum(samples.values()) / len(step)
        turns = {task: count / mean for task, count in samples.items()}  # exactly 1 where tasks have equally many
        random = random_state(self.fabric.device) if len(passes) > 1 else None
        totals = nothing = torch.zeros((), device=self.fabric.device)
        for index, batch in enumerate(passes):
            if index > 0:
                set_random_state(random, self.fabric.device)
            with self.fabric.no_backward_sync(self.model, enabled=index < len(passes) - 1):
                errors = self._errors(batch)
                terms = [self.weights[task] * turns[task] * errors[task] / max(1, measured[task]) for task in errors]
                # the gradient is averaged over the processes, and so is that of the penalty, which is the same in all
                loss = torch.stack(terms).sum() * (self.processes.world / len(step)) + penalty() / len(passes)
                # In the caller's thread also on a GPU: there, Python finds its objects in the caches.
                with torch.autograd.set_multithreading_enabled(False):
                    self.fabric.backward(self.scale.scale(loss))
            totals = totals + torch.stack([errors[task].detach() if task in errors else nothing for task in step])
        if self.processes.world > 1:
            self._forget(set(self.specs) - set(step))
            totals = self.processes.sum(totals.double())
        return Errors(totals, {task: measured[task] for task in step})

    def _counts(self, passes: Sequence[Batch]) -> tuple[dict[str, int], dict[str, int]]:
        """Samples and measured target values of each task in the step."""
        samples, measured = dict.fromkeys(self.specs, 0), dict.fromkeys(self.specs, 0)
        for batch in passes:
            for task, (_, targets) in batch.items():  # on the host
                samples[task] += len(targets)
                measured[task] += int((~targets.isnan()).sum()) if self.specs[task].missing else targets.numel()
        if self.processes.world > 1:
            counts = torch.tensor([list(samples.values()), list(measured.values())])
            samples, measured = (dict(zip(self.specs, row, strict=True)) for row in self.processes.sum(counts).tolist())
        return samples, measured

    def _errors(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of squared errors per task, of those of the batch."""
        if self.processes.world > 1:  # each process goes through every task, if need be with no sample at all
            batch = {task: batch[task] if task in batch else _no_sample(spec) for task, spec in self.specs.items()}
        batch = self.fabric.to_device(batch)
        forecasts = self.model({task: inputs for task, (inputs, _) in batch.items()})
        return {task: self._error(task, forecasts[task].float(), targets) for task, (_, targets) in batch.items()}

    def _error(self, task: str, forecast: Tensor, targets: Tensor) -> Tensor:
        if self.specs[task].missing:
            return masked_square_error(forecast, targets)
        return F.mse_loss(forecast, targets, reduction="sum")

    def _forget(self, tasks: set[str]) -> None:
        """Takes back the gradients, all zero, of tasks that are not in the step: an optimizer would act on them."""
        for parts in (self.model.module.encoders, self.model.module.decoders):
            for task in tasks:
                for parameter in parts[task].parameters():
                    parameter.grad = None


def task_weights(config: Config, baselines: Mapping[str, float]) -> dict[str, float]:
    """Weights of the tasks' errors in the loss; `baselines` are those of repeating the last frame."""
    relative, factors = config.optim.loss == "relative", config.train.loss_weights
    weights = {task: 1 / baseline if relative else 1.0 for task, baseline in baselines.items()}
    return {task: weight * factors.get(task, 1.0) for task, weight in weights.items()}


def _no_sample(spec: TaskSpec) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, *spec.input_shape), torch.zeros(0, *spec.target_shape)
