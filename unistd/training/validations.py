"""What the validations of a run have found so far: which was the best, and how many since then were no better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unistd.training.evaluate import Results


@dataclass
class Validations:
    """The record of a run's validations; part of its state, so that a run that goes on decides as one that was not
    stopped. An error is the mean over the tasks of the model's squared error as a share of repeating the last frame."""

    last: int = 0
    """step of the last one"""
    step: int = 0
    """step of the best one"""
    error: float | None = None
    """of the best one; None: there was none yet"""
    waited: int = 0
    """how many since then were no better"""
    samples: int = 0
    """of each task, that were measured"""

    def note(self, step: int, results: Results, baselines: Mapping[str, float], samples: int, counts: bool) -> bool:
        """Notes the results after `step` steps; whether they are the best so far.

        Those on another number of samples say nothing about these: the record starts anew.

        Args:
            baselines: each task's training error of repeating the last frame, in the place of one that is 0.
            counts: whether it counts towards an early stop if it is no better.
        """
        if samples != self.samples:
            self.error, self.waited, self.samples = None, 0, samples
        shares = [r["model"]["mse"] / (r["repeat_last"]["mse"] or baselines[task]) for task, r in results.items()]
        error, self.last = math.fsum(shares) / len(shares), step
        better = self.error is None or error < self.error
        if better:
            self.step, self.error, self.waited = step, error, 0
        else:
            self.waited += counts
        return better

    def exhausted(self, patience: int | None) -> bool:
        """Whether as many as `patience` were no better."""
        return patience is not None and self.waited >= patience

    def state_dict(self) -> dict[str, Any]:
        """All of it, plain."""
        return asdict(self)
