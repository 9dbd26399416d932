"""What the command `unistd` does: train, evaluate, predict, export, tasks, report; and its grammar."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastmoe_lora import __version__
from unistd.arguments import Help, check_task, described
from unistd.data_commands import add_commands
from unistd.files import write_text
from unistd.launch import launch
from unistd.messages import printable
from unistd.output import OutputLost
from unistd.plan.command import add_options as add_plan_options
from unistd.plan.command import plan
from unistd.predict_command import add_predict_options, predict
from unistd.runs_command import add_runs_options, runs
from unistd.schema import describe_keys
from unistd.tasks import task_table
from unistd.terminal import say
from unistd.training.checkpoint import CheckpointError
from unistd.training.config import Config
from unistd.training.errors import TrainingError
from unistd.training.evaluate import held_out_sizes
from unistd.training.loading import WorkerError
from unistd.training.networks import read_networks
from unistd.training.own import task_named
from unistd.training.processes import Processes, check_sharing
from unistd.training.records import read_results
from unistd.training.results import evaluate_run, results_table
from unistd.training.run import Run, find_run, read_run
from unistd.training.settings import CONFIGS, dump_config, load_config
from unistd.training.stop import StopRequest, StopRequested
from unistd.training.trainer import Trainer

# what a user can set right: shown in one line. Anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, OSError, MemoryError, CheckpointError, TrainingError, WorkerError)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options; `run_command(options, console)` in them does it."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    if options.command in ("train", "plan"):  # argparse alone does not take overrides on both sides of an option
        options.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def train(options: argparse.Namespace, console: Console) -> int | None:
    """Trains, evaluates and reports; continues a stopped run with --resume."""
    config = load_config(options.config, options.overrides)
    _check_folder(options, config)
    processes = Processes.of_environment()
    check_sharing(config, processes)
    if processes.world == 1 and config.train.devices * config.train.nodes > 1:
        return launch(options.arguments, config.train.devices, config.train.nodes)
    processes.meet()
    read_networks(config)  # before hours of training that their files would spoil at the end
    run = Run(Path(config.run))
    if options.profile:
        _profile(config, run, console, processes)
        return None
    with run.writing() if processes.first else nullcontext():
        resume = processes.of_first(lambda: _resumes(options, run))
        trainer = Trainer(config, run, console, resume, processes)
        if trainer.complete and processes.of_first(lambda: _show_complete(run, trainer, console)):
            return None
        sizes = processes.of_first(lambda: held_out_sizes(config))  # which opens these splits: before files are deleted
        if processes.first:
            if not resume:
                run.delete_files()
            write_text(run.config, dump_config(config))
        stop = StopRequest(processes)
        try:
            with stop.noting_loss():
                _introduce(trainer, sizes, console)
            stop.check()
        except (OutputLost, StopRequested) as lost:
            trainer.stop(lost)
        trainer.fit()
        trainer.save_adapters()
        _evaluate(run, console, processes)
        if processes.first:
            _report(run, console)
    return None


def _profile(config: Config, run: Run, console: Console, processes: Processes) -> None:
    from unistd.profiling import profile_steps, show

    with run.writing() if processes.first else nullcontext():
        found = profile_steps(Trainer(config, run, console, processes=processes), run.profile)
    if processes.first:
        show(found, console)


def _resumes(options: argparse.Namespace, run: Run) -> bool:
    """Whether the run of the folder goes on; raises CheckpointError where it is not said what is to become of it."""
    if run.checkpoint.exists() and not (options.resume or options.restart):
        raise CheckpointError(f"{run.folder}: holds a run already; --resume continues it, --restart deletes it")
    results = next((path for path in (run.metrics, run.report, run.adapters) if path.exists()), None)
    if results is not None and not (run.checkpoint.exists() or options.restart):
        raise CheckpointError(f"{results}: of a run whose checkpoint is gone; --restart deletes what is left of it")
    return run.checkpoint.exists() and not options.restart


def _show_complete(run: Run, trainer: Trainer, console: Console) -> bool:
    """Shows the results of a run that has them all; whether it does."""
    if run.report.exists():
        with suppress(CheckpointError, ValueError):  # none, damaged or of an earlier step: they are made again
            results = results_table(read_results(run, trainer.config.tasks, trainer.step).values)
            say(console, f"{run.folder} is complete; --restart trains it again")
            console.print(results)
            return True
    return False


def _check_folder(options: argparse.Namespace, config: Config) -> None:
    """A run's own config.yaml is a config as any other; but its `run` is not where it is after a move or a copy."""
    own = Run(Path(options.config).parent)
    chosen = any(override.startswith("run=") for override in options.overrides)
    moved = os.path.realpath(config.run) != os.path.realpath(own.folder)
    if Path(options.config).name == own.config.name and own.checkpoint.exists() and moved and not chosen:
        raise CheckpointError(
            f"{options.config}: its run was moved here from {config.run!r}; run=FOLDER says which one is meant"
        )


def _introduce(trainer: Trainer, sizes: Mapping[str, Mapping[str, int]], console: Console) -> None:
    model = trainer.model.module
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say(
        console,
        Text.assemble(
            ("UniSTD", "bold"),
            f" · {len(trainer.specs)} tasks · {parameters / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained"
            f" · {trainer.steps} steps in {trainer.config.train.epochs} epochs · {printable(str(trainer.run.folder))}",
        ),
    )
    for task, data in trainer.loader.dataset.datasets.items():
        low, high = data.spec.offset, data.spec.offset + data.spec.scale
        zero = f"0.0 is {low:g}, " if low else ""
        say(console, f"  {task}: {len(data):,} training samples, {data.source}, {zero}1.0 is {high:g} {data.spec.unit}")
        held = " and ".join(f"{count:,} {split}" for split, count in sizes[task].items())
        say(console, f"    held out: {held} samples")
        for note in getattr(data, "notes", ()):
            say(console, f"    {note}")


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """Measures a run's model on the held-out test split."""
    processes = Processes.of_environment()
    processes.meet()
    run = find_run(options.run)
    with run.writing() if processes.first else nullcontext():
        _evaluate(run, console, processes, options.checkpoint)


def _evaluate(run: Run, console: Console, processes: Processes, which: str = "last") -> None:
    console.print(results_table(evaluate_run(run.folder, console, processes, which)))


def report(options: argparse.Namespace, console: Console) -> None:
    """Writes a run's report.html."""
    run = find_run(options.run)
    with run.writing():
        _report(run, console, options.checkpoint)


def _report(run: Run, console: Console, which: str = "last") -> None:
    from unistd.report import write_report  # matplotlib is slow to import, and only this needs it

    say(console, f"report: {write_report(run.folder, which)}")


def export(options: argparse.Namespace, console: Console) -> None:
    """Writes a run's model of one task as an ONNX or .pt2 file that needs none of this code, checked against it."""
    from unistd.export import export as write

    trained = read_run(options.run, options.checkpoint)
    check_task(options.task, trained.model.tasks)
    run, named = trained.run, options.output is not None
    output = Path(options.output) if named else run.exports / f"{options.task}.{options.format}"
    with nullcontext() if named else run.writing():
        if not named:
            run.exports.mkdir(exist_ok=True)
        written = write(trained, options.task, options.format, output)
    say(
        console,
        f"exported {written.size / 1e6:.2f} MB: {written.path}; largest difference to the model"
        f" {written.difference:.2g}, of values up to {written.largest:.3g}",
    )


def tasks(options: argparse.Namespace, console: Console) -> None:
    """Lists the ten tasks, and those of one's own that are named: shapes, and where their data come from."""
    rows = task_table(options.root, [task_named(word, options.root) for word in options.own])
    table = Table(box=None, header_style="dim")
    for column in rows[0]:
        table.add_column(column, justify="right" if isinstance(rows[0][column], int) else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="unistd",
        description="One Transformer that forecasts ten spatio-temporal tasks.",
        epilog="example:\n  unistd train --config demo\n\nunistd COMMAND --help explains a command. Exit status: 0, 1"
        " after an error,\n2 after a wrong option, 128 + signal after a stop.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"unistd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function, *examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, **described(function.__doc__, *examples))
        sub.register("action", None, _Once)
        sub.set_defaults(run_command=function)
        return sub

    sub = command(
        train, "unistd train --config demo train.epochs=9 train.seed=1", "unistd train --config demo --resume"
    )
    sub.epilog += f"\n\n{keys_help()}"
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    sub.add_argument("--config", required=True, metavar="NAME_OR_FILE", help=f"a YAML file, or one of: {names}")
    again = sub.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    again.add_argument("--restart", action="store_true", help="delete the run of that folder and start anew")
    text = "take a few steps and say where their time goes; a run in that folder stays as it is"
    again.add_argument("--profile", action="store_true", help=text)
    sub.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes of single keys, see below")

    def of_run(function, *examples: str, text: str = "folder of a run") -> argparse.ArgumentParser:
        sub = command(function, *examples)
        sub.add_argument("run", metavar="RUN", help=text)
        text = "last (the default), best (by validation), or a file of a checkpoint of this run"
        sub.add_argument("--checkpoint", default="last", metavar="last|best|FILE", help=text)
        return sub

    of_run(evaluate, "unistd evaluate runs/demo --checkpoint best")
    of_run(report, "unistd report runs/demo", text="folder of an evaluated run")

    add_predict_options(
        of_run(predict, "unistd predict runs/demo --task kth --input in.npy --output out.npy --units physical --gif")
    )

    sub = of_run(export, "unistd export runs/demo --task kth --format onnx")
    sub.add_argument("--task", required=True, help="one of the run's tasks")
    text = "onnx, for ONNX Runtime and others, or pt2, a program of torch.export"
    sub.add_argument("--format", required=True, choices=("onnx", "pt2"), help=text)
    text = "receives the model; default: exports/TASK.FORMAT in the run's folder"
    sub.add_argument("--output", metavar="FILE", help=text)

    words = described("Checks, prepares, shows or exports data.", "unistd data check --data-root DIR")
    sub = commands.add_parser("data", **words)
    add_commands(sub)

    sub = command(plan, "unistd plan --config paper --gpu h100 --gpus 8")
    add_plan_options(sub)

    add_runs_options(command(runs, "unistd runs runs --output runs.html"))

    sub = command(tasks, "unistd tasks", "unistd tasks rain.yaml --root DIR")
    text = "YAML descriptions of tasks of one's own, or the names of those that are shipped"
    sub.add_argument("own", nargs="*", metavar="OWN", help=text)
    sub.add_argument("--root", metavar="FOLDER", help="folder of real data sets")
    return parser


class _Once(argparse._StoreAction):
    """An option with a value, given once: of two values argparse alone would take the last in silence."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        seen = namespace.__dict__.setdefault("seen", set())
        if option_string in seen:
            parser.error(f"argument {option_string}: given twice, expected once")
        if option_string is not None:
            seen.add(option_string)
        super().__call__(parser, namespace, values, option_string)


def keys_help() -> str:
    """Every key of a config with its type, default and meaning."""
    lines = ["keys of a config:"]
    for key, kind, default, meaning in describe_keys(Config):
        lines += textwrap.wrap(f"{meaning} ({kind}; default {default})", 116, initial_indent=f"  {key:<28} ",
                               subsequent_indent=" " * 31)  # fmt: skip
    return "\n".join(lines)
