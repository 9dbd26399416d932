"""Boxes and arrows for drawings."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"x": "#cfe2f3", "adapter": "#fce5cd", "base": "#d9ead3", "out": "#ead1dc", "plain": "#eeeeee"}


def canvas(width: float, height: float) -> Axes:
    """Axes of that many units, an inch for two, without frame and ticks."""
    _, axis = plt.subplots(figsize=(width / 2, height / 2), layout="constrained")
    axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axis.axis("off")
    return axis


def box(axis: Axes, x: float, y: float, width: float, height: float, text: str, kind: str = "plain") -> None:
    axis.add_patch(plt.Rectangle((x, y), width, height, facecolor=COLOURS[kind], edgecolor="#444444"))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444444"})
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.15)
    axis.text(*middle, text, ha="center", va="bottom", fontsize=7, color="#444444")
