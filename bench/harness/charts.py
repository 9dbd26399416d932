"""Figures of the records, at the width of a README."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.record import Entry, Group, Record
from bench.harness.tables import column, short

matplotlib.use("Agg")
WIDTH, DPI = 8.5, 160
OURS, DEFAULT, PEER, FLOOR = "#7fb2e5", "#1f6fb4", "#b9b9b9", "#d1495b"
STYLES = {  # lines of the scaling figures: colour, line, marker
    "linear": (FLOOR, "--", ""),
    "no-adapters": (FLOOR, "--", ""),
    "three-gemm": ("#8a8a8a", "-", "s"),
    "packed": (OURS, "-", "^"),
    "packed-separate": (OURS, ":", "^"),
    "cpu": (DEFAULT, "-", "o"),
    "cpu-separate": (DEFAULT, ":", "o"),
    "triton": (DEFAULT, "-", "o"),
    "triton-separate": (DEFAULT, ":", "o"),
}
RC = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
}


def figures(record: Record) -> dict[str, Figure]:
    """File stem -> figure of a record."""
    with matplotlib.rc_context(RC):
        if record.comparison == "scaling":
            found = {"": lines(record, "ms"), "-memory": lines(record, "MB")}
        elif record.comparison == "memory":
            found = {"": bars(record.groups, _median, "MB")}
        elif record.comparison in ("model", "train"):
            found = {"": bars(record.groups, _rate, "samples/s")}
        else:
            found = {"": bars(record.groups, _over_floor, "time over the frozen nn.Linear's, the floor (log scale)")}
    return {suffix: figure for suffix, figure in found.items() if figure is not None}


def save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=DPI)


def bars(groups: list[Group], value: Callable[[Group, Entry], tuple[float, float, float] | None], label: str) -> Figure:
    """A panel a group, a bar an entry that was measured; whiskers from the 20th to the 80th percentile."""
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    shown = [[e for e in group.entries if value(group, e) is not None] for group in groups]
    height = sum(0.55 + 0.17 * max(map(len, shown[i * columns : (i + 1) * columns])) for i in range(rows)) + 0.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    heights = [0.55 + 0.17 * max(map(len, shown[i * columns : (i + 1) * columns])) for i in range(rows)]
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    logarithmic = value is _over_floor
    for axis, group, entries in zip(axes.flat, groups, shown, strict=False):
        _bar_panel(axis, group, [(entry, value(group, entry)) for entry in entries], logarithmic)
    figure.supxlabel(label, fontsize=8)
    return figure


def lines(record: Record, unit: str) -> Figure | None:
    """A panel an axis: cost against what grows; dashed: the floor, dotted: the floor's rate for all the arithmetic."""
    chosen = [g for g in record.groups if g.unit == unit and g.title != "forward"]
    axes_names = list(dict.fromkeys(group.axis for group in chosen))
    if not axes_names:
        return None
    columns = min(3, len(axes_names))
    rows = -(-len(axes_names) // columns)
    figure = Figure(figsize=(WIDTH, 2.5 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, object] = {}
    for panel in panels.flat[len(axes_names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels.flat, axes_names, strict=False):
        handles |= _line_panel(panel, [group for group in chosen if group.axis == name], unit)
        panel.set_xlabel(name)
    for panel in panels[:, 0]:
        panel.set_ylabel("kept for the backward pass, MB" if unit == "MB" else "forward and backward, ms")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=7.5)
    return figure


def _bar_panel(
    axis: Axes, group: Group, entries: list[tuple[Entry, tuple[float, float, float]]], logarithmic: bool
) -> None:
    for place, (entry, (median, low, high)) in enumerate(reversed(entries)):
        fast = entry.name.removesuffix("-separate") in ("cpu", "triton")
        colour = (DEFAULT if fast else OURS) if entry.ours else FLOOR if entry.name == group.floor else PEER
        axis.barh(place, median, color=colour, height=0.72)
        axis.plot([low, high], [place, place], color="#404040", linewidth=0.8)
        axis.annotate(
            short(median), (max(median, high), place), (3, 0), textcoords="offset points", va="center", fontsize=6.5
        )
    axis.set_yticks(range(len(entries)), [entry.title for entry, _ in reversed(entries)], fontsize=6.5)
    axis.set_title(column(group), loc="left")
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    if logarithmic:
        axis.set_xscale("log")
        axis.axvline(1, color=FLOOR, linewidth=0.8)
        ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if t <= 2 * max((v[2] for _, v in entries), default=1)]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    axis.margins(x=0.12)


def _line_panel(panel: Axes, groups: list[Group], unit: str) -> dict[str, object]:
    handles: dict[str, object] = {}
    names = dict.fromkeys(entry.name for group in groups for entry in group.entries if entry.measured)
    for name in names:
        points = [(g.value, e.quantiles) for g in groups if (e := g.entry(name)) is not None and e.measured]
        if unit == "MB" and all(q.median == 0 for _, q in points):
            continue  # nothing on a logarithmic scale
        colour, style, marker = STYLES.get(name, (PEER, "-", "."))
        x, medians = [value for value, _ in points], [q.median for _, q in points]
        (handle,) = panel.plot(x, medians, color=colour, linestyle=style, marker=marker, markersize=3, linewidth=1.3)
        panel.fill_between(x, [q.p20 for _, q in points], [q.p80 for _, q in points], color=colour, alpha=0.2, lw=0)
        handles[_legend(groups, name)] = handle
    ideal = [(g.value, g.entry("linear").quantiles.median * _arithmetic(g)) for g in groups if g.floor == "linear"]
    if unit == "ms" and ideal:
        (handle,) = panel.plot(*zip(*ideal, strict=True), color=FLOOR, linestyle=":", linewidth=1.2)
        handles["floor's rate for all the arithmetic"] = handle
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    values = sorted({group.value for group in groups})
    panel.set_xticks(values, [f"{value:g}" for value in values], rotation=30 if max(values) > 9999 else 0, fontsize=7)
    panel.minorticks_off()
    low, high = panel.get_ylim()
    if high < 100 * low:  # powers of ten alone would be one tick or two
        steps = (step * 10**power for power in range(-3, 7) for step in (1, 2, 5))
        ticks = [tick for tick in steps if low <= tick <= high]
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.grid(which="major")
    return handles


def _legend(groups: list[Group], name: str) -> str:
    if name in ("linear", "no-adapters"):
        return "floor: no adapters"
    if name.endswith("-separate"):
        return f"{name.removesuffix('-separate')}, a pass for each task"
    return next(e.title for g in groups if (e := g.entry(name))) if name == "three-gemm" else f"fastmoe_lora, {name}"


def _arithmetic(group: Group) -> float:
    """All multiplications of forward and backward over the frozen layer's: forward 1 + a, backward 1 + 2a."""
    k, n, s, e, r = (group.shape[key] for key in ("K", "N", "S", "E", "R"))
    share = s * e * (r * (k + n // s) + k) / (k * n)
    return 1 + 1.5 * share


def _median(group: Group, entry: Entry) -> tuple[float, float, float] | None:
    if not entry.measured:
        return None
    q = entry.quantiles
    return q.median, q.p20, q.p80


def _rate(group: Group, entry: Entry) -> tuple[float, float, float] | None:
    if not entry.measured:
        return None
    q = entry.quantiles
    return tuple(1e3 * group.items / value for value in (q.median, q.p80, q.p20))


def _over_floor(group: Group, entry: Entry) -> tuple[float, float, float] | None:
    ratio = group.ratio(entry.name, group.floor) if group.floor not in (None, entry.name) else None
    return None if ratio is None else (ratio.median, ratio.p20, ratio.p80)
