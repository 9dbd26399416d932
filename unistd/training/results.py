"""The final evaluation of a run: metrics.json and the table that shows it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_fabric import Fabric
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from unistd.files import read_text, write_text
from unistd.metrics import METRICS
from unistd.tasks import TaskSpec
from unistd.training.checkpoint import CheckpointError
from unistd.training.evaluate import Results, evaluate, held_out, tasks_beaten
from unistd.training.expected import Maybe, compare, finite, number, whole
from unistd.training.run import Run, read_run
from unistd.training.sources import check_data


def evaluate_run(folder: str | Path, console: Console) -> Results:
    """Measures a run's model on the test split, writes metrics.json and returns its "tasks".

    Raises CheckpointError as `open_run` does.
    """
    trained = read_run(folder)
    run, config, model = trained.run, trained.config, trained.model
    fabric = Fabric(accelerator=config.train.accelerator, devices=1, precision=config.train.precision)
    module = fabric.setup_module(model)
    datasets, batch = held_out(config, "test"), config.train.batch_size
    check_data(trained.sources, trained.units, datasets, run.checkpoint)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("evaluation", total=sum(-(-len(dataset) // batch) for dataset in datasets.values()))

        def advance(task: str) -> None:
            progress.update(bar, advance=1, description=f"evaluation of {task}")

        results = evaluate(module, datasets, batch, config.data.workers, fabric.to_device, advance)
    record = {
        "split": "test",
        "step": trained.step,
        "samples": {task: len(dataset) for task, dataset in datasets.items()},
        "source": {task: dataset.source for task, dataset in datasets.items()},
        "units": {task: _units(dataset.spec) for task, dataset in datasets.items()},
        "tasks": results,
    }
    text = json.dumps(record, indent=2) + "\n"
    if not _holds(run.metrics, text):
        run.report.unlink(missing_ok=True)  # it shows other results
    write_text(run.metrics, text)
    return results


def _units(spec: TaskSpec) -> dict[str, float | str]:
    """A value v of the results is v * scale + offset of a unit."""
    return {"scale": spec.scale, "offset": spec.offset, "unit": spec.unit}


def _holds(path: Path, text: str) -> bool:
    try:
        return read_text(path) == text
    except (OSError, ValueError):
        return False


def read_results(run: Run, tasks: Iterable[str], step: int) -> Results:
    """The "tasks" of a run's metrics.json.

    Raises CheckpointError where the run was not evaluated, or not after this `step`, and where the file is damaged or
    of other tasks; OSError where it cannot be read.
    """
    again = f"`unistd evaluate {run.folder}` makes them"
    try:
        record = json.loads(read_text(run.metrics))
    except FileNotFoundError:
        raise CheckpointError(f"{run.metrics}: no results yet, {again}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{run.metrics}: damaged, not JSON ({error})") from None
    measures = {name: finite if name in ("psnr", "ssim") else number(zero=True) for name in METRICS}
    results = {task: {"model": measures, "repeat_last": measures} for task in tasks}
    others = dict.fromkeys(("split", "samples", "source", "units"), Maybe(lambda value: None))
    expected = {"step": Maybe(whole(0, sys.maxsize)), "tasks": results} | others
    compare(record, expected, "", f"{run.metrics}: damaged")
    if record.get("step", step) != step:  # earlier releases do not say
        raise CheckpointError(
            f"{run.metrics}: results after step {record['step']}, the checkpoint is of step {step}; {again} anew"
        )
    return record["tasks"]


def change(result: Mapping[str, Mapping[str, float]]) -> float:
    """By how much a task's squared error differs from that of repeating the last frame, as a share of it."""
    model, last = result["model"]["mse"], result["repeat_last"]["mse"]
    return model / last - 1 if last else math.inf


def results_table(results: Results) -> Table:
    """Model beside repeated last frame, per task."""
    beaten = tasks_beaten(results)
    title = f"better than repeating the last frame on {len(beaten)} of {len(results)} tasks"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("task")
    for column in ("MSE", "repeat-last", "change", "MAE", "PSNR", "repeat-last", "SSIM", "repeat-last"):
        table.add_column(column, justify="right")
    for task, result in results.items():
        model, last = result["model"], result["repeat_last"]
        table.add_row(
            Text(task),
            f"{model['mse']:.5f}",
            f"{last['mse']:.5f}",
            f"[{'green' if task in beaten else 'red'}]{change(result):+.0%}",
            f"{model['mae']:.4f}",
            f"{model['psnr']:.2f}",
            f"{last['psnr']:.2f}",
            f"{model['ssim']:.3f}",
            f"{last['ssim']:.3f}",
        )
    return table
