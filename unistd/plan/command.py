"""The command `unistd plan`."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unistd.arguments import share, whole_number
from unistd.messages import printable
from unistd.plan.gpus import EFFICIENCY, GPUS, find_gpu
from unistd.training.settings import load_config

_MOST_GPUS, _LARGEST_BATCH = 100_000, 65_536


def plan(options: argparse.Namespace, console: Console) -> None:
    """Says what a training takes on some number of GPUs: memory, time, reading rate. Needs no GPU and no data."""
    from unistd.plan.estimate import (
        Assumptions,
        Planner,
    )  # symbolic shapes are slow to import, and only this needs them
    from unistd.plan.table import heading, memory_rows, notes, time_rows, titles

    gpu = find_gpu(options.gpu)
    config = load_config(options.config, options.overrides)
    batch = None if options.batch is None else options.batch * options.gpus
    found = Planner(config).plan(gpu, options.gpus, Assumptions(options.efficiency), batch)
    console.print(Text(f"{printable(str(options.config))} on {heading(found)}"), soft_wrap=True, highlight=False)
    for title, rows in (("memory, GB", memory_rows(found)), ("time", time_rows(found))):
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column(title)
        for name in titles(found):
            table.add_column(name, justify="right")
        for name, values in rows:
            table.add_row(name, *values)
        console.print(table, "")
    for line in notes(found):
        console.print(Text(line), soft_wrap=True, highlight=False)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The grammar of `unistd plan`."""
    parser.add_argument("--config", required=True, metavar="NAME_OR_FILE", help="as of `unistd train`")
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"one of: {', '.join(GPUS)}")
    parser.add_argument("--gpus", type=whole_number(_MOST_GPUS), default=1, metavar="N", help="how many (default: 1)")
    text = "samples of each task on each GPU; default: train.batch_size, shared by all of them"
    parser.add_argument("--batch", type=whole_number(_LARGEST_BATCH), metavar="N", help=text)
    text = "share of the data sheet's peaks that is reached (default: %(default)s): an assumption"
    parser.add_argument("--efficiency", type=share, default=EFFICIENCY, metavar="SHARE", help=text)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes of single keys")
