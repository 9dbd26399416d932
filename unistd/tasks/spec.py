"""What a task is to the model and the metrics: its shapes, its patch and its unit."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

from unistd.metrics import DEFAULT_METRICS, check_metrics

_WHOLE_NUMBERS = ("channels", "height", "width", "frames_in", "frames_out", "patch")


@dataclass(frozen=True)
class TaskSpec:
    """Shapes, token patch and unit of one forecasting task.

    Args:
        name: key of the task in `unistd.TASKS`.
        title: name for people, as printed in tables.
        discipline: "traffic", "motion", "driving" or "weather".
        channels, height, width: C, H, W of one frame.
        frames_in, frames_out: Tin frames are given, Tout frames are to be forecast.
        patch: pixels per side of a token, at most a frame's shorter side. Where it does not divide a side, the model
            repeats the frame's last row or column until it does, and crops what it forecasts.
        scale, offset, unit: physical value = normalised value * scale + offset, in `unit`; normalised values lie in
            [0, 1].
        missing: frames may hold NaN where nothing was measured.
        metrics: names of `unistd.metrics.MEASURES`; "mse" is always among them.
        thresholds: of the events that some measures count, in `unit`, increasing.

    Raises:
        ValueError: a size is not a positive whole number, the patch is larger than the frame, the scale is not
            positive, `missing` is neither true nor false, or a measure is unknown or not one of this task.
    """

    name: str
    title: str
    discipline: str
    channels: int
    height: int
    width: int
    frames_in: int
    frames_out: int
    patch: int
    scale: float
    offset: float
    unit: str
    missing: bool = False
    metrics: tuple[str, ...] = DEFAULT_METRICS
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in _WHOLE_NUMBERS:
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"task {self.name}: {field} is {value!r}, expected a positive whole number")
        for side in ("height", "width"):
            if getattr(self, side) < self.patch:
                raise ValueError(
                    f"task {self.name}: {side} is {getattr(self, side)}, expected at least patch {self.patch}"
                )
        if not self.scale > 0:
            raise ValueError(f"task {self.name}: scale is {self.scale!r}, expected a positive number")
        if not isinstance(self.missing, bool):
            raise ValueError(f"task {self.name}: missing is {self.missing!r}, expected true or false")
        self._check_metrics()

    def _check_metrics(self) -> None:
        for field in ("metrics", "thresholds"):
            value = getattr(self, field)
            if not isinstance(value, tuple | list):
                raise ValueError(f"task {self.name}: {field} is {value!r}, expected a list")
            object.__setattr__(self, field, tuple(value))
        try:
            check_metrics(self.metrics, self.thresholds)
        except ValueError as error:
            raise ValueError(f"task {self.name}: {error}") from None
        if "nino" in self.metrics and self.name != "enso":
            raise ValueError(f"task {self.name}: metrics: 'nino' is of the region of task 'enso' alone")
        if "mse" not in self.metrics:
            object.__setattr__(self, "metrics", ("mse", *self.metrics))

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens along height and width, the last of which may lie partly outside the frame."""
        return -(-self.height // self.patch), -(-self.width // self.patch)

    @property
    def tokens(self) -> int:
        """Number of tokens N of one sample."""
        rows, columns = self.grid
        return rows * columns

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(Tin, C, H, W)."""
        return self.frames_in, self.channels, self.height, self.width

    @property
    def target_shape(self) -> tuple[int, int, int, int]:
        """(Tout, C, H, W)."""
        return self.frames_out, self.channels, self.height, self.width

    def replace(self, **changes: object) -> TaskSpec:
        """A copy with some fields changed, checked like a new one.

        Raises:
            ValueError: an unknown field (the message names the nearest known one) or a value that does not fit.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise ValueError(f"task {self.name}: unknown field {key!r}{nearest(key, known)}")
        return dataclasses.replace(self, **changes)


def nearest(word: str, known: list[str]) -> str:
    """Tail of an error message: the known word nearest to `word`, or all of them when none is near."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f", did you mean {close[0]!r}?" if close else f", expected one of {', '.join(known)}"
