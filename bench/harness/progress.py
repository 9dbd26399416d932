"""Prints a group as it is measured."""

from bench.harness.record import Group


def print_group(group: Group) -> None:
    """A line an entry: quantiles, and the ratio to the floor; a result that is wrong has neither."""
    sizes = " ".join(f"{key}={value}" for key, value in group.shape.items())
    axis = f" {group.axis}={group.value:g}" if group.axis else ""
    print(f"\n{group.title}{axis}  {sizes}  {group.dtype}, {group.mode}")
    width = max(len(entry.title) for entry in group.entries)
    for entry in group.entries:
        if not entry.measured:
            print(f"  {entry.title:<{width}}  {entry.status}: {entry.reason}")
            continue
        q = entry.quantiles
        line = f"  {entry.title:<{width}}  {q.median:9.2f} {group.unit}  ({q.p20:.2f} to {q.p80:.2f})"
        ratio = group.ratio(entry.name, group.floor) if group.floor not in (None, entry.name) else None
        if ratio is not None:
            line += f"  {ratio.median:6.2f} x {group.floor}"
        if group.items and group.unit == "ms":
            line += f"  {1e3 * group.items / q.median:8.1f} samples/s"
        if entry.peak_mb is not None:
            line += f"  peak {entry.peak_mb:.0f} MB"
        print(line, flush=True)
