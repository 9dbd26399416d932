"""Charts as SVG that takes its colours from the page, so that they fit its light and its dark theme."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

# drawn in these colours, which are then replaced by the page's
INK, MUTED, GRID, ACCENT, SECOND, THIRD = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
PAGE_COLOURS = {
    INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", ACCENT: "var(--accent)", SECOND: "var(--second)",
    THIRD: "var(--good)",
}  # fmt: skip
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def learning_curves(log: Sequence[Mapping[str, Any]], rank_steps: int) -> str:
    """Per task: training error (line) and held-out error (dots) as shares of repeating the last frame, over steps."""
    baselines = next((record["baselines"] for record in log if "baselines" in record), {})
    tasks = list(baselines)
    columns = min(5, len(tasks))
    rows = -(-len(tasks) // columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axis in axes[len(tasks) :]:
            axis.set_visible(False)
        for axis, task in zip(axes, tasks, strict=False):
            training = [(r["step"], r["losses"][task] / baselines[task]) for r in log if task in r.get("losses", {})]
            results = [(r["step"], r["val"][task]) for r in log if "val" in r]
            last = [(step, result["model"]["mse"], result["repeat_last"]["mse"]) for step, result in results]
            held_out = [(step, mse / unchanged) for step, mse, unchanged in last if unchanged]
            axis.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            axis.axvspan(0, rank_steps, color=ACCENT, alpha=0.07, linewidth=0)
            if training:
                axis.plot(*zip(*training, strict=True), color=ACCENT, linewidth=1.3)
            if held_out:
                axis.plot(*zip(*held_out, strict=True), "o", color=SECOND, markersize=2.6)
            axis.set_title(task, fontsize=9, loc="left", fontweight="bold")
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(FixedLocator(TICKS))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(length=0)
        figure.supxlabel("step", fontsize=8.5, color=MUTED)

    return svg(draw, (10.4, 1.75 * rows + 0.35), "curves")


def rank_curves(log: Sequence[Mapping[str, Any]]) -> str:
    """How far the ranks spread out (standard deviation over all experts) and the sampling window, over steps."""
    records = [record for record in log if "rank_spread" in record]

    def draw(figure: Figure) -> None:
        axis: Axes = figure.subplots()
        steps = [record["step"] for record in records]
        spread, window = ([record[key] for record in records] for key in ("rank_spread", "window"))
        axis.plot(steps, spread, color=ACCENT, linewidth=1.5)
        axis.plot(steps, window, color=SECOND, linewidth=1.2, linestyle=(0, (4, 2)))
        axis.set_ylim(0, 1.25 * max([1.0, *spread, *window]))
        axis.set_xlabel("step")
        axis.tick_params(length=0)
        for values, place, text, colour in ((spread, -1, "spread of the ranks", ACCENT), (window, 0, "window", SECOND)):
            if records:
                axis.annotate(text, (steps[place], values[place]), (0, 5), color=colour, textcoords="offset points",
                              ha="right" if place else "left")  # fmt: skip

    return svg(draw, (5.4, 2.6), "ranks")


def svg(draw: Callable[[Figure], None], size: tuple[float, float], name: str) -> str:
    """Draws a figure of `size` (inches) and returns its <svg> element; `name` keeps the ids of several charts apart."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, page in PAGE_COLOURS.items():
        svg = svg.replace(drawn, page)
    return svg.replace("<svg ", f'<svg class="chart" id="chart-{name}" role="img" ', 1)
