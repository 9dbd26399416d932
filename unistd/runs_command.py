"""The command `unistd runs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unistd.files import write_text
from unistd.messages import printable
from unistd.terminal import say


def runs(options: argparse.Namespace, console: Console) -> None:
    """Lists and compares runs: a table, and on request their held-out errors in one HTML file."""
    from unistd.report.runs import find_runs, runs_page, summarise  # matplotlib is slow to import

    summaries = [summarise(run) for run in find_runs([Path(folder) for folder in options.folders or ["runs"]])]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("run", "tasks", "step", "error of repeat-last", "training, s", "last written, UTC"):
        table.add_column(name, justify="left" if name in ("run", "tasks") else "right", overflow="fold")
    for found in summaries:
        error = f"{found.errors[-1][1]:.3f}" if found.errors else "-"
        words = (", ".join(found.tasks), str(found.step), error, f"{found.seconds:.0f}", f"{found.changed:%F %R}")
        table.add_row(Text(printable(str(found.folder))), *map(Text, words))
    console.print(table)
    if options.output is not None:
        write_text(Path(options.output), runs_page(summaries))
        say(console, f"curves: {options.output}")


def add_runs_options(parser: argparse.ArgumentParser) -> None:
    """The grammar of `unistd runs`."""
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="a run, or a folder of runs (default: runs)")
    parser.add_argument("--output", metavar="FILE.html", help="receives the curves of all of them in one chart")
