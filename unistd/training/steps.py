"""What training steps came to: numbers that stay on the device until those of many steps are read at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unistd.training.objective import Errors


@dataclass(frozen=True)
class Step:
    """A step as it was read.

    Attributes:
        number: steps that are done with it.
        losses: each task's mean squared error.
        norm: of the gradient.
        scale: that its loss had in float16, else 1.
        skipped: whether it changed nothing, since some of its numbers are NaN or infinite.
        rate, window: learning rate, and width of the ranks' window, in it.
    """

    number: int
    losses: dict[str, float]
    norm: float
    scale: float
    skipped: bool
    rate: float
    window: float


@dataclass(frozen=True)
class _Pending:
    number: int
    errors: Errors
    rate: float
    window: float
    numbers: Tensor


class Steps:
    """The steps since the last `read`, in their order."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def add(self, number: int, errors: Errors, norm: Tensor, scale: Tensor, rate: float, window: float) -> Tensor:
        """Keeps what a step came to; returns (), on the device, 1 where it is to be skipped, else 0.

        norm, scale: (), of gradient and loss, the same in all processes as the errors are.
        """
        numbers = torch.cat([errors.sums, torch.stack([norm.detach(), scale]).to(errors.sums.dtype)])
        self._pending.append(_Pending(number, errors, rate, window, numbers))
        return (~numbers.isfinite().all()).float()

    def read(self) -> list[Step]:
        """The steps, once: the device is waited for."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        parts = torch.cat([step.numbers for step in pending]).cpu().split([len(step.numbers) for step in pending])
        found = []
        for step, part in zip(pending, parts, strict=True):
            *sums, norm, scale = part.tolist()
            skipped = not bool(part.isfinite().all())
            found.append(Step(step.number, step.errors.means(sums), norm, scale, skipped, step.rate, step.window))
        return found
