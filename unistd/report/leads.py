"""How a task's measures grow worse with the lead time, for the model and the baselines."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unistd.metrics import MEASURES
from unistd.report.charts import ACCENT, MUTED, SECOND, THIRD, svg

LINES = {
    "model": (ACCENT, "solid", 1.6),
    "repeat_last": (SECOND, "solid", 1.1),
    "linear": (THIRD, (0, (4, 2)), 1.1),
    "training_mean": (MUTED, (0, (1, 1.5)), 1.1),
}
SHOWN = ("mse", "csi", "nino", "lpips", "ssim", "psnr", "mae")  # the first two of these that a task has
Values = Mapping[str, Mapping[str, list[float | None]]]  # forecaster -> measure -> values per lead time


def lead_measures(leads: Values) -> list[str]:
    """The measures that are drawn: up to two that the model has a number of."""
    model = leads.get("model", {})
    return [name for name in SHOWN if any(value is not None for value in model.get(name, []))][:2]


def lead_curves(task: str, leads: Values) -> str:
    """One axis a measure: its value over the forecast frame, one line a forecaster. An <svg> element."""
    measures = lead_measures(leads)

    def draw(figure: Figure) -> None:
        for axis, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
            for forecaster, (colour, style, width) in LINES.items():
                values = leads.get(forecaster, {}).get(measure, [])
                points = [(lead, value) for lead, value in enumerate(values, 1) if value is not None]
                if points:
                    marker = "o" if len(points) == 1 else None
                    axis.plot(*zip(*points, strict=True), color=colour, linestyle=style, linewidth=width,
                              marker=marker, markersize=3)  # fmt: skip
            axis.set_title(MEASURES[measure].title, fontsize=8.5, loc="left")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.tick_params(length=0)

    return svg(draw, (5.2, 1.7), f"leads-{task}")
