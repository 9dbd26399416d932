"""Which task has which turn of a training: a function of the seed and the turn's number, whatever the shares.

A turn is a batch of one task; a step has several. Turns are equally many for all tasks, or in proportion to shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from unistd.training.config import TrainConfig

Turn = tuple[int, int]  # number of the task, how often it was visited before


class Schedule(Protocol):
    """The order of the turns."""

    def turns(self, numbers: range) -> list[Turn]:
        """The turns of these numbers."""


class RoundRobin:
    """Every round visits each of `tasks` tasks once, in a new random order."""

    def __init__(self, tasks: int, seed: int) -> None:
        self.tasks, self.seed = tasks, seed

    def turns(self, numbers: range) -> list[Turn]:
        """See `Schedule`."""
        return [self._turn(number) for number in numbers]

    def _turn(self, number: int) -> Turn:
        visit, place = divmod(number, self.tasks)
        return int(permutation(self.tasks, self.seed, self.tasks, visit)[place]), visit


class Proportional:
    """Turns in proportion to shares, spread evenly: task t of share p has its visit k at the time (k + u) / p, where u
    is random in [0, 1) for each visit, and turns are in the order of time. Equal shares are rounds in random order.

    Args:
        shares: of the tasks, each above 0; their sum is 1.
        first: number of the turn from which these shares hold.
        visits: how often each task was visited before that; none: never.
    """

    def __init__(self, shares: Sequence[float], seed: int, first: int = 0, visits: Sequence[int] = ()) -> None:
        self.shares, self.seed, self.first = list(shares), seed, first
        self.visits = list(visits) or [0] * len(self.shares)

    def turns(self, numbers: range) -> list[Turn]:
        """See `Schedule`; raises ValueError for a turn before `first`."""
        begin, end = numbers.start - self.first, numbers.stop - self.first
        if begin < 0:
            raise ValueError(f"turn {numbers.start}: expected one from {self.first} on")
        tasks = len(self.shares)
        # before a time t there are t turns, up to one of each task
        early, late = max(0, begin - tasks), end + tasks
        before, found = 0, []
        for task, share in enumerate(self.shares):
            visit = max(0, math.floor(share * early) - 1)
            before += visit
            while (time := self._time(task, visit)) < late:
                if time < early:
                    before += 1
                else:
                    found.append((time, task, self.visits[task] + visit))
                visit += 1
        return [(task, visit) for _, task, visit in sorted(found)[begin - before : end - before]]

    def visits_at(self, number: int) -> list[int]:
        """How often each task was visited before the turn of this number."""
        following: dict[int, int] = {}
        tasks = len(self.shares)
        ahead = 3 * tasks + math.ceil(2 / min(self.shares))  # among them is a visit of each task
        for task, visit in self.turns(range(number, number + ahead)):
            following.setdefault(task, visit)
        return [following[task] for task in range(tasks)]

    def _time(self, task: int, visit: int) -> float:
        return (visit + _uniform(self.seed, task, self.visits[task] + visit)) / self.shares[task]


def shares_of(train: TrainConfig, lengths: Mapping[str, int]) -> list[float]:
    """Shares by the number n of training samples of each task: n^(1/T), T being 1 in 'proportional' sampling and
    `train.temperature` in that by 'temperature'."""
    power = 1.0 if train.sampling == "proportional" else 1 / train.temperature
    longest = max(lengths.values())
    weights = [(length / longest) ** power for length in lengths.values()]
    return [weight / math.fsum(weights) for weight in weights]


@lru_cache(maxsize=64)
def permutation(length: int, *key: int) -> np.ndarray:
    """A random order of `length` things, which `key` decides."""
    return np.random.default_rng(key).permutation(length)


@lru_cache(maxsize=4096)
def _uniform(*key: int) -> float:
    return float(np.random.default_rng(key).random())
