"""The final evaluation of a run: metrics.json and the table that shows it."""

from __future__ import annotations

import json

from lightning_fabric import Fabric
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from unistd.training.checkpoint import CheckpointError, write_atomically
from unistd.training.evaluate import Results, evaluate, held_out, tasks_beaten
from unistd.training.run import Run, open_run


def evaluate_run(folder: str, console: Console) -> Results:
    """Measures a run's model on the test split, writes metrics.json and returns its "tasks".

    Raises CheckpointError as `open_run` does.
    """
    run, config, model = open_run(folder)
    fabric = Fabric(accelerator=config.train.accelerator, devices=1, precision=config.train.precision)
    module = fabric.setup_module(model)
    datasets, batch = held_out(config, "test"), config.train.batch_size
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("evaluation", total=sum(-(-len(dataset) // batch) for dataset in datasets.values()))

        def advance(task: str) -> None:
            progress.update(bar, advance=1, description=f"evaluation of {task}")

        results = evaluate(module, datasets, batch, config.data.workers, fabric.to_device, advance)
    record = {
        "split": "test",
        "samples": {task: len(dataset) for task, dataset in datasets.items()},
        "source": {task: dataset.source for task, dataset in datasets.items()},
        "tasks": results,
    }
    write_atomically(run.metrics, lambda file: file.write_text(json.dumps(record, indent=2) + "\n"))
    return results


def read_results(run: Run) -> Results:
    """The "tasks" of a run's metrics.json; raises CheckpointError where the run was not evaluated."""
    if not run.metrics.is_file():
        raise CheckpointError(f"{run.metrics}: no results yet, `unistd evaluate {run.folder}` makes them")
    return json.loads(run.metrics.read_text())["tasks"]


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
        change = model["mse"] / last["mse"] - 1 if last["mse"] else float("inf")
        table.add_row(
            task,
            f"{model['mse']:.5f}",
            f"{last['mse']:.5f}",
            f"[{'green' if task in beaten else 'red'}]{change:+.0%}",
            f"{model['mae']:.4f}",
            f"{model['psnr']:.2f}",
            f"{last['psnr']:.2f}",
            f"{model['ssim']:.3f}",
            f"{last['ssim']:.3f}",
        )
    return table
