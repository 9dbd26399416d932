"""The measures by name: what a task may ask for, which way is better, how a value is written."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

EVENT_METRICS = ("csi", "pod", "sucr", "bias", "hss")
DEFAULT_METRICS = ("mse", "mae", "rmse", "psnr", "ssim", "vrmse")


@dataclass(frozen=True)
class Measure:
    """A measure: its title, whether "lower" or "higher" values are better or 1 is, and its digits after the point."""

    title: str
    better: Literal["lower", "higher", "one"]
    digits: int
    least: float = -math.inf
    """no value is below it"""

    def text(self, value: float | None) -> str:
        """A value as tables show it, "-" where it is undefined."""
        return "-" if value is None else f"{value:.{self.digits}f}"


MEASURES = {
    "mse": Measure("MSE", "lower", 5, 0),
    "mae": Measure("MAE", "lower", 4, 0),
    "rmse": Measure("RMSE", "lower", 4, 0),
    "psnr": Measure("PSNR", "higher", 1),
    "ssim": Measure("SSIM", "higher", 3),
    "ssim_openstl": Measure("SSIM (data range 2)", "higher", 3),
    "vrmse": Measure("VRMSE", "lower", 3, 0),
    "vrmse_well": Measure("VRMSE (The Well)", "lower", 3, 0),
    "csi": Measure("CSI", "higher", 3, 0),
    "pod": Measure("POD", "higher", 3, 0),
    "sucr": Measure("SUCR", "higher", 3, 0),
    "bias": Measure("bias", "one", 3, 0),
    "hss": Measure("HSS", "higher", 3),
    "lpips": Measure("LPIPS", "lower", 3),
    "fvd": Measure("FVD", "lower", 1, 0),
    "nino": Measure("Nino3.4 correlation", "higher", 3),
}
_SUFFIX = re.compile(r"sum|physical|weighted|(pool\d+_?)?(-?\d[-+.e\d]*)?")


def measure_of(value: str) -> Measure | None:
    """The measure that a value belongs to by its name, as "csi_pool4_16" to "csi"; None: to none."""
    if value in MEASURES:
        return MEASURES[value]
    base, _, suffix = value.partition("_")
    return MEASURES.get(base) if suffix and _SUFFIX.fullmatch(suffix) else None


def check_metrics(metrics: Sequence[str], thresholds: Sequence[float]) -> None:
    """Raises ValueError, naming the argument, where a task cannot be measured so.

    Args:
        metrics: names of `MEASURES`, each once.
        thresholds: of the events that `csi`, `pod`, `sucr`, `bias` and `hss` count, in physical units, increasing.
    """
    for index, name in enumerate(metrics):
        if name not in MEASURES:
            close = difflib.get_close_matches(str(name), list(MEASURES), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected some of {', '.join(MEASURES)}"
            raise ValueError(f"metrics: unknown measure {str(name)[:40]!r}, {hint}")
        if name in metrics[:index]:
            raise ValueError(f"metrics: {name!r} is there twice, expected once")
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in thresholds]
    if not all(numbers) or not all(map(math.isfinite, thresholds)):
        raise ValueError(f"thresholds: expected finite numbers, found {str(list(thresholds))[:100]}")
    if any(after <= before for before, after in pairwise(thresholds)):
        raise ValueError(f"thresholds: expected increasing numbers, found {str(list(thresholds))[:100]}")
    events = [name for name in metrics if name in EVENT_METRICS]
    if events and not thresholds:
        raise ValueError(f"thresholds: found none, expected those of the events that {', '.join(events)} count")
