"""One training for all forecasters: the same samples in the same order, loss and schedule, for a number of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.forecasting.entrants import Entrant
from unistd.masks import masked_square_error
from unistd.training import Config
from unistd.training.baseline import repeat_last_errors
from unistd.training.data import Batch, MixedBatchSampler, MixedDataset, collate, task_specs
from unistd.training.optim import build_optimizer, build_schedule
from unistd.training.ranks import RankPhase
from unistd.training.sampling import Proportional

RANK_SHARE = 0.4  # of the steps, as in the demo; then ranks are frozen
PILOT_STEPS = 16


@dataclass(frozen=True)
class Plan:
    """A training of some steps: how many batches each task has in all of them (a step has as many as tasks), and the
    seed of weights and order."""

    batches: Mapping[str, int]
    seed: int

    @property
    def steps(self) -> int:
        return max(1, round(sum(self.batches.values()) / len(self.batches)))


class Course:
    """A training by a plan. The data are the config's and the same for all seeds."""

    def __init__(self, entrant: Entrant, config: Config, plan: Plan, data: MixedDataset):
        torch.manual_seed(plan.seed)
        self.config, self.plan, self.data, self.specs = config, plan, data, task_specs(config)
        self.model = entrant.build(config, self.specs)
        self.ranks = RankPhase(self.model, config.ranks, round(RANK_SHARE * plan.steps)) if entrant.adapted else None
        optim = config.optim.model_copy(update=entrant.optim)
        self.optimizer = build_optimizer(self.model, optim, self.ranks.ranks if self.ranks else ())
        self.schedule = build_schedule(self.optimizer, optim, plan.steps)
        self.errors = repeat_last_errors(data, self.specs)

    def run(self) -> nn.Module:
        """Takes all steps; returns the model."""
        self.model.train()
        for number, batch in enumerate(self.batches()):
            self.step(number, batch)
        if self.ranks and not self.ranks.frozen:
            self.ranks.freeze()
        return self.model.eval()

    def seconds_per_step(self) -> float:
        """Of processor time, batches at hand: the mean over a training, ranks being frozen for its last part."""
        batches = [batch for batch, _ in zip(self.batches(), range(3), strict=False)]
        self.model.train()
        learning = self._seconds(batches, 0)
        if self.ranks is None:
            return learning
        frozen = self._seconds(batches, self.plan.steps)
        return RANK_SHARE * learning + (1 - RANK_SHARE) * frozen

    def _seconds(self, batches: list[Batch], number: int) -> float:
        for index in range(3):
            self.step(number, batches[index % len(batches)])
        begin = time.process_time()
        for index in range(PILOT_STEPS):
            self.step(number, batches[index % len(batches)])
        return (time.process_time() - begin) / PILOT_STEPS

    def batches(self) -> Iterator[Batch]:
        """The batches of the steps."""
        plan, tasks = self.plan, list(self.specs)
        total = sum(plan.batches.values())
        schedule = Proportional([plan.batches[task] / total for task in tasks], plan.seed)
        lengths = {task: len(self.data.datasets[task]) for task in tasks}
        size = self.config.train.batch_size
        for keys in MixedBatchSampler(lengths, size, len(tasks), plan.seed, range(plan.steps), schedule):
            yield collate([self.data[key] for key in keys])

    def step(self, number: int, batch: Batch) -> None:
        """One step on a batch that mixes tasks."""
        if self.ranks:
            self.ranks.begin_step(number)
        self.loss(batch).backward()
        if self.config.optim.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ranks:
            self.ranks.end_step()
        self.schedule.step()

    def loss(self, batch: Batch) -> Tensor:
        """The mean, over the samples, of a task's squared error over that of repeating the last frame."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.train.precision == "bf16-mixed"):
            forecasts = self.model({task: inputs for task, (inputs, _) in batch.items()})
        samples = sum(len(inputs) for inputs, _ in batch.values())
        terms = []
        for task, (_, targets) in batch.items():
            measured = max(1, int((~targets.isnan()).sum()))
            error = masked_square_error(forecasts[task].float(), targets) / measured
            terms.append(error / self.errors[task] * (len(targets) / samples))
        return torch.stack(terms).sum()
