"""Records -> Markdown: a table, what it was measured on, and where a peer wins."""

from collections.abc import Iterable
from dataclasses import dataclass

from bench.harness.reasons import reason
from bench.harness.record import FAILED, UNAVAILABLE, WRONG, Entry, Group, Record
from bench.harness.timing import Quantiles

FASTEST_FIRST = ("triton", "cpu", "packed", "reference")


@dataclass(frozen=True)
class Loss:
    """A peer that beats what a user of the package gets by default."""

    group: Group
    ours: Entry
    peer: Entry
    ratio: Quantiles  # ours over the peer's

    def sentence(self) -> str:
        what = "memory" if self.group.unit == "MB" else "time"
        spread = f" ({self.ratio.p20:.2f} to {self.ratio.p80:.2f})" if len(self.peer.samples) > 1 else ""
        return (
            f"{column(self.group)}: {self.ours.title} takes {self.ratio.median:.2f} times the {what}{spread} of"
            f" {self.peer.title}: {reason(self.peer.name, self.group.unit, self.group.dtype)}."
        )


def section(record: Record) -> str:
    """What goes between the markers of a README for one comparison."""
    if record.comparison == "cpu_targets":
        return f"{target_table(record.groups)}\n\n{_measured_on(record)}"
    body = scaling_table(record) if record.comparison == "scaling" else table(record.groups)
    parts = [body, _measured_on(record), *_wrong(record.groups), _against_floor(record.groups), _losses(record.groups)]
    return "\n\n".join(part for part in [*parts, _not_run(record.groups)] if part)


def table(groups: list[Group]) -> str:
    """A row an entry, a column a group: the median and, in brackets, that over the floor's from paired rounds."""
    names = _in_order(groups)
    lines = ["| | " + " | ".join(map(column, groups)) + " |", "|---|" + "---:|" * len(groups)]
    for name, title in names.items():
        entries = [group.entry(name) for group in groups]
        if all(entry is None or entry.status == UNAVAILABLE for entry in entries):
            continue
        cells = [_cell(group, entry) for group, entry in zip(groups, entries, strict=True)]
        ours = any(entry is not None and entry.ours for entry in entries)
        lines.append(f"| {f'**{title}**' if ours else title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def target_table(groups: list[Group]) -> str:
    """A row a target: our time over that of what it is measured by, from paired rounds, and what it should be."""
    lines = ["| | over | target | median | p20 to p80 | |", "|---|---|---:|---:|---:|---|"]
    for group in groups:
        ours = default_entry(group)
        for name, bound in group.targets.items():
            ratio = group.ratio(ours.name, name) if ours else None
            if ratio is None:
                continue
            verdict = "met" if ratio.median <= bound else "missed"
            cells = [group.title, group.entry(name).title, f"{bound:.2f}", f"{ratio.median:.2f}"]
            lines.append(f"| {' | '.join(cells)} | {ratio.p20:.2f} to {ratio.p80:.2f} | {verdict} |")
    return "\n".join(lines)


def scaling_table(record: Record) -> str:
    """A row an axis and quantity: the default backend's cost over the floor's at each value of the axis."""
    lines = ["| | cost over the same without adapters |", "|---|---|"]
    for axis in dict.fromkeys(group.axis for group in record.groups):
        of_axis = [group for group in record.groups if group.axis == axis and group.unit == "ms"]
        for title in dict.fromkeys(group.title for group in of_axis):
            points = [_point(group) for group in of_axis if group.title == title]
            lines.append(f"| {axis}, {title} | " + " · ".join(point for point in points if point) + " |")
    return "\n".join(lines)


def losses(groups: Iterable[Group]) -> list[Loss]:
    """Every group and peer where our default backend takes more, beyond the spread of the paired rounds."""
    found = []
    for group in groups:
        ours = default_entry(group)
        for peer in group.entries if ours else []:
            if peer.ours or peer.name == group.floor:
                continue
            ratio = group.ratio(ours.name, peer.name)
            if ratio is not None and ratio.p20 > 1 and not _within_a_megabyte(group, ours, peer):
                found.append(Loss(group, ours, peer, ratio))
    return found


def _within_a_megabyte(group: Group, ours: Entry, peer: Entry) -> bool:
    """Memory is measured to about a megabyte."""
    return group.unit == "MB" and ours.quantiles.median - peer.quantiles.median < 1


def default_entry(group: Group) -> Entry | None:
    """What ``backend="auto"`` gives here: the first of triton, cpu and packed that was measured."""
    entries = (group.entry(name) for name in FASTEST_FIRST[:-1])
    return next((entry for entry in entries if entry is not None and entry.measured), None)


def column(group: Group) -> str:
    """Name of a group in a table."""
    mode = ", CUDA graph" if group.mode == "graph" else ""
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    axis = f"{group.axis} {group.value:g}, " if group.axis else ""
    return f"{axis}{group.title}, {short.get(group.dtype, group.dtype)}{mode}"


def _cell(group: Group, entry: Entry | None) -> str:
    if entry is None or entry.status == UNAVAILABLE:
        return "-"
    if not entry.measured:
        return {WRONG: "wrong result", FAILED: "failed"}.get(entry.status, entry.status)
    value = entry.quantiles.median
    text = f"{short(1e3 * group.items / value)} samples/s" if group.items else f"{short(value)} {group.unit}"
    ratio = group.ratio(entry.name, group.floor) if group.floor not in (None, entry.name) else None
    if ratio is not None:
        text += f" ({ratio.median:.2f}x)"
    return text if entry.peak_mb is None else f"{text}, {entry.peak_mb:.0f} MB"


def short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _point(group: Group) -> str:
    ours = default_entry(group)
    ratio = group.ratio(ours.name, group.floor) if ours and group.floor else None
    return f"{group.value:g}: {ratio.median:.2f}x" if ratio else ""


def _in_order(groups: list[Group]) -> dict[str, str]:
    """Name -> title of all entries; a title that differs between groups gives its part in front of the first comma."""
    titles: dict[str, str] = {}
    for group in groups:
        for entry in group.entries:
            known = titles.setdefault(entry.name, entry.title)
            if known != entry.title:
                titles[entry.name] = _common(known, entry.title)
    return titles


def _common(one: str, other: str) -> str:
    parts = zip(one.split(", "), other.split(", "), strict=False)
    shared = [a for a, b in parts if a == b]
    return ", ".join(shared) or one


def _measured_on(record: Record) -> str:
    machine, versions = record.machine, record.versions
    where = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    isa = machine.get("nvidia_smi") or ", ".join(machine.get("instructions", []))
    return (
        f"<sub>{where} ({isa}); torch {versions.get('torch')}; commit {record.commit};"
        f" {record.created[:10]}. Medians of interleaved rounds; in brackets the paired ratio to the plain layer"
        " without adapters.</sub>"
    )


def _wrong(groups: list[Group]) -> list[str]:
    wrong = [(group, entry) for group in groups for entry in group.entries if entry.status == WRONG]
    return [f"**Wrong result, so not timed:** {entry.title} at {column(g)} ({entry.reason})." for g, entry in wrong]


def _against_floor(groups: list[Group]) -> str:
    """One sentence on what the adapters cost over the layer without them."""
    ratios = []
    for group in groups:
        ours = default_entry(group)
        if ours and group.floor and (ratio := group.ratio(ours.name, group.floor)):
            ratios.append((ratio.median, column(group), ours.title))
    if not ratios or groups[0].unit == "MB":
        return ""
    low, high = min(ratios), max(ratios)
    least = f"{low[0]:.2f} ({low[1]}) to " if len(ratios) > 1 else ""
    cost = f"{least}{high[0]:.2f} ({high[1]}) times as long"
    return f"The plain layer without adapters computes less: {high[2]} takes {cost}."


def _losses(groups: list[Group]) -> str:
    found = losses(groups)
    compared = any(not entry.ours and entry.measured and entry.name != g.floor for g in groups for entry in g.entries)
    if not found:
        return "No peer that ran here is better at any of these sizes." if compared else ""
    return "**Where a peer is better:**\n" + "\n".join(f"- {loss.sentence()}" for loss in found)


def _not_run(groups: list[Group]) -> str:
    reasons: dict[str, str] = {}
    for group in groups:
        for entry in group.entries:
            if entry.status in (UNAVAILABLE, FAILED):
                reasons.setdefault(entry.title, entry.reason)
    listed = "; ".join(f"{title} ({why})" for title, why in reasons.items())
    return f"<sub>Not run: {listed}.</sub>" if listed else ""


def between_markers(text: str, name: str, content: str) -> str | None:
    """``text`` with what stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` replaced; None without."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    if begin not in text:
        return None
    before, _, rest = text.partition(begin)
    if end not in rest:
        raise ValueError(f"marker {begin} has no {end} behind it")
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
