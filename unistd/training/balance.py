"""Sampling by the losses: a task that is far from learned has more turns than one that is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unistd.training.expected import number, whole
from unistd.training.sampling import Proportional, Turn

EVEN = 0.5  # part of the turns that all tasks have alike


class LossBalance:
    """Turns of tasks by their errors e, each the mean of a task's training losses over an epoch as a share of repeating
    the last frame: of n tasks, one has the share 1/2 · 1/n + 1/2 · e / (sum of all e).

    Shares change at the ends of epochs alone, and by losses that all processes have alike. A task that an epoch did not
    visit keeps its error; in the first epoch all are 1. All of this is part of a run's state.

    Args:
        tasks: in their order.
    """

    def __init__(self, tasks: Sequence[str], seed: int) -> None:
        self.tasks, self.seed = list(tasks), seed
        self.errors = dict.fromkeys(self.tasks, 1.0)
        self._losses: dict[str, list[float]] = {}
        self._schedule = Proportional(self.shares, seed)

    @property
    def shares(self) -> list[float]:
        """Of the tasks, for the turns to come."""
        total = math.fsum(self.errors.values())
        left = [error / total if total > 0 else 1 / len(self.tasks) for error in self.errors.values()]
        shares = [EVEN / len(self.tasks) + (1 - EVEN) * share for share in left]
        return [share / math.fsum(shares) for share in shares]

    def turns(self, numbers: range) -> list[Turn]:
        """See `sampling.Schedule`."""
        return self._schedule.turns(numbers)

    def note(self, losses: Mapping[str, float]) -> None:
        """Takes a step's losses, as shares of repeating the last frame, into account; of those that are finite."""
        for task, loss in losses.items():
            if math.isfinite(loss):
                self._losses.setdefault(task, [0.0, 0.0])
                self._losses[task][0] += loss
                self._losses[task][1] += 1.0

    def begin_epoch(self, number: int) -> None:
        """From the turn of this number on, shares are by the losses that were noted since the last call; once."""
        if number == self._schedule.first:
            return
        visits = self._schedule.visits_at(number)
        self.errors |= {task: loss / count for task, (loss, count) in self._losses.items()}
        self._losses = {}
        self._schedule = Proportional(self.shares, self.seed, number, visits)

    def state_dict(self) -> dict[str, Any]:
        """All that the turns to come depend on."""
        schedule = self._schedule
        losses = {task: list(noted) for task, noted in self._losses.items()}
        return {"first": schedule.first, "visits": list(schedule.visits), "errors": dict(self.errors), "losses": losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self.errors = {task: state["errors"][task] for task in self.tasks}
        self._losses = {task: list(noted) for task, noted in state["losses"].items()}
        self._schedule = Proportional(self.shares, self.seed, state["first"], state["visits"])


def expected_balance(tasks: Sequence[str], step: int, turns: int) -> dict[str, Any]:
    """What a `state_dict` after `step` steps of `turns` turns must be, in the words of `expected.compare`."""
    most = step * turns

    def losses(value: Any) -> str | None:
        right = isinstance(value, dict) and set(value) <= set(tasks)
        for noted in value.values() if right else ():
            right = right and isinstance(noted, list) and len(noted) == 2 and not any(map(number(zero=True), noted))
            right = right and noted[1] >= 1
        return None if right else "sum and count of the losses of some of the tasks"

    def visits(value: Any) -> str | None:
        right = isinstance(value, list) and len(value) == len(tasks) and not any(map(whole(0, most), value))
        return None if right else f"{len(tasks)} whole numbers up to {most}"

    errors = dict.fromkeys(tasks, number(zero=True))
    return {"first": whole(0, most), "visits": visits, "errors": errors, "losses": losses}
