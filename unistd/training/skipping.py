"""Steps whose loss or gradient is NaN or infinite: skipped some times in a row, then the run stops and says why.

A skipped step changes neither weights nor ranks nor what their optimizers know; the step is counted and its samples are
not drawn again. It is skipped as a whole: in a mixed batch all tasks share the trunk, whose gradient is one sum.

In float16 a gradient may overflow though the losses are right. Such a step is skipped too, and the loss has half the
scale in the next one: no fault, as long as there is some scale left to halve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from unistd.training.data import MixedBatchSampler, MixedDataset
from unistd.training.errors import TrainingError
from unistd.training.precision import SMALLEST_SCALE
from unistd.training.steps import Step

_MOST = 8  # samples that a message names


class Skips:
    """Counts skipped steps, the same in all processes.

    Args:
        limit: of those in a row.
        sampler: which samples each step had.
        dataset: what they were read from.
        scaled: whether the loss has a scale.

    Attributes:
        row, total: in a row up to now, and of the run; the first without those that a scale has caused.
    """

    def __init__(self, limit: int, sampler: MixedBatchSampler, dataset: MixedDataset, scaled: bool = False) -> None:
        self.limit, self.sampler, self.dataset, self.scaled = limit, sampler, dataset, scaled
        self.row, self.total = 0, 0

    def note(self, step: Step) -> list[str]:
        """Takes a step into account; returns a line for people where it was skipped.

        Raises TrainingError, naming step, task and samples, where bad data are the cause, or where there are more than
        `limit` in a row.
        """
        if not step.skipped:
            self.row = 0
            return []
        self.total += 1
        wrong = next((task for task, loss in step.losses.items() if not math.isfinite(loss)), None)
        if wrong is None and self.scaled and step.scale >= SMALLEST_SCALE:
            return []
        self.row += 1
        found = "the gradient is NaN or Inf" if wrong is None else f"the loss of task {wrong!r} is {step.losses[wrong]}"
        what = f"step {step.number}: {found}"
        keys = self.sampler.batch(step.number - 1)
        if wrong is not None:
            mine = [index for task, index in keys if task == wrong]
            if bad := [index for index in dict.fromkeys(mine) if self._is_bad(wrong, index)]:
                held = "Inf" if self.dataset.datasets[wrong].spec.missing else "NaN or Inf"
                raise TrainingError(f"{what}; its frames hold {held}: {self._named(wrong, bad)}")
            cause = f"its frames are finite ({self._named(wrong, mine)})"
        else:
            tasks = dict.fromkeys(task for task, _ in keys)
            named = (f"{task!r}: {self._named(task, [i for t, i in keys if t == task])}" for task in tasks)
            cause = f"all losses are finite ({'; '.join(named)})"
        if self.row > self.limit:
            times = f"{self.row} such steps in a row, train.skip_limit is {self.limit}"
            raise TrainingError(f"{what}; {cause}: {times}; try a lower optim.lr")
        return [f"{what}; {cause}: the step is skipped ({self.row} in a row of at most {self.limit})"]

    def _is_bad(self, task: str, index: int) -> bool:
        """Whether a sample, read again, holds what no frames may hold."""
        _, frames = self.dataset[task, index]
        missing = self.dataset.datasets[task].spec.missing
        return any(bool((part.isinf() if missing else ~part.isfinite()).any()) for part in frames)

    def _named(self, task: str, indices: Sequence[int]) -> str:
        indices = list(dict.fromkeys(indices))
        shown = ", ".join(map(str, indices[:_MOST]))
        more = f" and {len(indices) - _MOST} more" if len(indices) > _MOST else ""
        plural = "" if len(indices) == 1 else "s"
        return f"training sample{plural} {shown}{more} of {self.dataset.datasets[task].source}"

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"row": self.row, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.row, self.total = state["row"], state["total"]
