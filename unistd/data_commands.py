"""The commands `unistd data ...`: check, prepare, preview and export-well."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from unistd.arguments import described
from unistd.messages import printable
from unistd.tasks import SPLITS, TASKS, DataFileError, Task, TaskSpec, build_dataset, get_task
from unistd.tasks.cards import CARDS
from unistd.tasks.readers.prepared import RECORD
from unistd.tasks.spec import nearest
from unistd.training.own import task_named

SIZES = ("height", "width", "frames_in", "frames_out")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The grammar of `unistd data`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def command(function, *examples: str) -> argparse.ArgumentParser:
        words = described(inspect.getdoc(function), *examples)
        sub = commands.add_parser(function.__name__.replace("_", "-"), **words)
        sub.set_defaults(run_command=function)
        return sub

    sizes = f"a size other than the protocol's, as height=64; one of {', '.join(SIZES)}; can be given again"
    sub = command(check, "unistd data check --data-root DIR", "unistd data check --data-root DIR --task kth --quick")
    sub.add_argument("--data-root", required=True, metavar="DIR", help="folder of the data sets, as data.root")
    text = "only this one, or the YAML description of one's own; can be given again"
    sub.add_argument("--task", action="append", metavar="TASK", help=text)
    sub.add_argument("--quick", action="store_true", help="read three frames of each recording, not all")

    sub = command(prepare, "unistd data prepare kth DOWNLOADS DIR --size height=64 --size width=64")
    sub.add_argument("task", metavar="TASK")
    sub.add_argument("source", metavar="SRC", help="folder that holds the published files, as data.root")
    sub.add_argument("target", metavar="DST", help="folder that receives TASK/: the data.root of runs to come")
    sub.add_argument("--size", action="append", default=[], metavar="NAME=N", help=sizes)

    sub = command(preview, "unistd data preview kth --data-root DIR --output pictures")
    sub.add_argument("task", metavar="TASK", help="one of the ten, or the YAML description of one's own")
    sub.add_argument("--data-root", metavar="DIR", help="folder of the data sets; without it data are generated")
    sub.add_argument("--split", choices=SPLITS, default="train")
    sub.add_argument("--output", default=".", metavar="DIR", help="receives TASK.gif and TASK.png")
    sub.add_argument("--size", action="append", default=[], metavar="NAME=N", help=sizes)

    sub = command(
        export_well, "unistd data export-well runs/demo DST", "unistd data export-well kth DST --data-root DIR"
    )
    text = "folder of a run, whose tasks are written; or a task, or the YAML description of one's own"
    sub.add_argument("source", metavar="RUN_OR_TASK", help=text)
    sub.add_argument("target", metavar="DST", help="folder that receives TASK/data/{train,valid,test}/TASK.hdf5")
    sub.add_argument("--data-root", metavar="DIR", help="folder of a task's data sets; without it data are generated")


def check(options: argparse.Namespace, console: Console) -> None:
    """Says of every task what lies below a root: samples, range, gaps, files missing or damaged, and what to do."""
    from unistd.data.check import check as look

    tasks = [task_named(word, options.data_root) for word in options.task or TASKS]
    with _progress(console) as bar:
        row = bar.add_task("", total=None)

        def advance(task: str, number: int, count: int) -> None:
            bar.update(row, description=task, completed=number, total=count)

        findings = look(tasks, Path(options.data_root), options.quick, advance)
    for found in findings:
        _show(found, console)
    there = [found for found in findings if found.source is not None]
    faults = sum(len(found.faults) for found in findings)
    lacking = [found.task for found in findings if found.source is None and options.task]
    _say(console, f"tasks found: {len(there)} of {len(findings)}; faults: {faults}")
    if faults or lacking:
        what = f"no files of {', '.join(lacking)}" if lacking else f"faults in the data: {faults}"
        raise DataFileError(f"{options.data_root}: {what}")


def _show(found, console: Console) -> None:
    card = CARDS.get(found.task)
    if card is None:
        _say(console, f"{found.task}: {found.source}: {_counts(found)}")
    elif found.source is None:
        what = "not as published" if found.faults else "nothing found"
        _say(console, f"{found.task}: {what}. From {card.source}. Licence: {card.licence}.")
        _say(console, f"  read are: {'; '.join(card.forms)}")
    else:
        _say(console, f"{found.task}: {found.source}: {_counts(found)}")
    if found.spec is not None:
        spec, (low, high) = found.spec, found.range or (float("nan"), float("nan"))
        shape = f"{spec.channels} x {spec.height} x {spec.width}, {spec.frames_in} -> {spec.frames_out} frames"
        _say(console, f"  {shape}, values {low:g} to {high:g} {spec.unit}, 1.0 is {spec.scale + spec.offset:g}")
        if card is not None and card.prepare and not (Path(found.source) / RECORD).exists():
            _say(console, f"  {card.prepare}")
    for note in found.notes:
        _say(console, f"  {note}")
    for fault in found.faults:
        _say(console, f"  fault: {fault}")


def _counts(found) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in found.samples.items()) or "no samples"


def prepare(options: argparse.Namespace, console: Console) -> None:
    """Turns published files into one fast form; goes on where it was interrupted."""
    from unistd.data.prepare import prepare as write

    with _progress(console) as bar:
        row = bar.add_task(f"frames of {options.task}", total=None)
        folder = write(
            _spec(options),
            Path(options.source),
            Path(options.target),
            lambda total: bar.update(row, total=total),
            lambda count: bar.update(row, advance=count),
        )
    _say(console, f"prepared: {folder}; train with data.root={options.target}")


def preview(options: argparse.Namespace, console: Console) -> None:
    """Draws samples of a task as an animation and a contact sheet."""
    from unistd.data.preview import ROWS
    from unistd.data.preview import preview as draw

    task = task_named(options.task, options.data_root)
    root, length = _root(task, options.data_root), None if options.data_root else ROWS
    data = build_dataset(_spec(options, task), options.split, root=root, length=length, task=task)
    for path in draw(data, Path(options.output)):
        _say(console, str(path))


def export_well(options: argparse.Namespace, console: Console) -> None:
    """Writes the samples of a task, or of all tasks of a run, as HDF5 of The Well, in physical units."""
    from unistd.data.well import export_well as write
    from unistd.training.data import split_datasets
    from unistd.training.run import find_run
    from unistd.training.settings import load_config

    if Path(options.source).is_dir():
        config = load_config(find_run(options.source).config)
        splits = {split: split_datasets(config, split) for split in SPLITS}
        tasks = {name: {split: splits[split][name] for split in SPLITS} for name in config.tasks}
    else:
        task = task_named(options.source, options.data_root)
        root, name = _root(task, options.data_root), task.spec.name
        tasks = {name: {split: build_dataset(task.spec, split, root=root, task=task) for split in SPLITS}}
    with _progress(console) as bar:
        row = bar.add_task("", total=None)
        for name, datasets in tasks.items():
            written = write(datasets, Path(options.target) / name, lambda split: bar.update(row, description=split))
            for path in written:
                _say(console, f"written: {path}")


def _root(task: Task, data_root: str | None) -> str | None:
    """Where a task's files lie; those of one's own may have whole paths."""
    return (data_root or "/") if task.generator is None else data_root


def _spec(options: argparse.Namespace, task: Task | None = None) -> TaskSpec:
    changes = {}
    for text in options.size:
        name, equals, value = text.partition("=")
        if name not in SIZES or not equals:
            raise ValueError(f"{text!r}: expected --size NAME=N{nearest(name, list(SIZES))}")
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f"{text!r}: expected a whole number after {name}=")
        changes[name] = int(value)
    return (task or get_task(options.task)).spec.replace(**changes)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _say(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=True, highlight=False)
