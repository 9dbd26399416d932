"""What becomes of the steps that a training has taken, each time their numbers are read from the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from unistd.training.balance import LossBalance
from unistd.training.config import Config
from unistd.training.log import NoLog, RunLog
from unistd.training.progress import TrainingProgress
from unistd.training.ranks import RankPhase
from unistd.training.skipping import Skips
from unistd.training.steps import Steps


class Account:
    """Logs, counts and shows steps.

    Args:
        skips: the rule for steps that are skipped.
        balance: is told the losses; None: nobody asks for them.
        baselines: MSE of repeating the last frame, per task.
        say: tells a person a line.

    Attributes:
        steps: those that were taken and not read yet.
        seconds: that the run has taken so far.
        waited: seconds of them, since the last reading, in which batches were waited for.
    """

    def __init__(
        self,
        config: Config,
        ranks: RankPhase,
        skips: Skips,
        balance: LossBalance | None,
        baselines: Mapping[str, float],
        say: Callable[[str], None],
    ) -> None:
        train = config.train
        self.ranks, self.skips, self.balance, self.baselines, self.say = ranks, skips, balance, baselines, say
        self.samples = train.batch_size * train.accumulate * config.turns  # of a step
        self.steps, self.seconds = Steps(), 0.0
        self.start()

    def start(self) -> None:
        """Time counts from here on."""
        self._clock, self.waited = time.perf_counter(), 0.0

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's state."""
        self.seconds = state["seconds"]
        if "skips" in state:  # not of earlier releases
            self.skips.load_state_dict(state["skips"])

    def read(self, done: int, log: RunLog | NoLog, progress: TrainingProgress) -> None:
        """Reads the steps since the last time, of `done` in all; the device is waited for.

        Raises TrainingError where a step was skipped that should end the run.
        """
        if not (steps := self.steps.read()):
            return
        now = time.perf_counter()
        took, waited = now - self._clock, self.waited
        self.start()
        self.seconds += took
        samples = len(steps) * self.samples
        summary = self.ranks.summary()
        speed = {"samples_per_second": samples / took, "waiting": waited / took, "seconds": self.seconds}
        lines: list[str] = []
        try:
            for step in steps:
                lines += self.skips.note(step)
                losses = None if step.skipped else step.losses
                if self.balance is not None and losses is not None:
                    self.balance.note({task: loss / self.baselines[task] for task, loss in losses.items()})
                scale = {"loss_scale": step.scale} if self.skips.scaled else {}
                log.step(step.number, losses, {"lr": step.rate, **speed, "window": step.window} | scale | summary)
                progress.losses(step.number, losses or {})
        finally:
            for line in lines:
                self.say(line)
        phase = "frozen" if self.ranks.frozen else "learning"
        ranks = f"ranks {phase} {summary['rank_mean']:.2f} ± {summary['rank_spread']:.2f}"
        progress.show(done, ranks, samples / took)
