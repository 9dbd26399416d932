"""The final evaluation of a run: metrics.json, what TensorBoard shows of it, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from unistd.files import read_text, write_text
from unistd.messages import printable
from unistd.metrics import MEASURES, Baseline
from unistd.tasks import TaskSpec
from unistd.training.board import remove_scores, write_scores
from unistd.training.device import open_device_or_cpu
from unistd.training.evaluate import (
    BASELINES,
    MEAN_SAMPLES,
    Results,
    baselines_of,
    evaluate,
    held_out,
    leads_of,
    tasks_beaten,
    values_of,
)
from unistd.training.forgetting import forgetting_line, read_before
from unistd.training.networks import read_networks
from unistd.training.processes import ALONE, Processes
from unistd.training.run import read_run
from unistd.training.sources import check_data


def evaluate_run(folder: str | Path, console: Console, processes: Processes = ALONE, which: str = "last") -> Results:
    """Measures a run's model and the baselines on the test split, writes metrics.json and returns its "tasks".

    Of several `processes`, which have met and all call this, each measures its share, and the first one writes.
    which: of the run's checkpoints, see `read_chosen`.

    Raises CheckpointError as `open_run` does; ValueError as `evaluate` does.
    """
    trained = read_run(folder, which)
    run, config, model = trained.run, trained.config, trained.model
    fabric = open_device_or_cpu(
        config.train, lambda line: console.print(line, soft_wrap=True, highlight=False), processes
    )
    module = fabric.setup_module(model)
    networks = {name: network.to(fabric.device) for name, network in read_networks(config).items()}
    datasets, batch = held_out(config, "test"), config.train.batch_size
    training = held_out(config, "train")
    for split in (datasets, training):
        check_data(trained.sources, trained.units, split, trained.checkpoint)
    with Progress(console=console, transient=True) as progress:
        at_once = batch * processes.world
        bar = progress.add_task("evaluation", total=sum(-(-len(dataset) // at_once) for dataset in datasets.values()))

        def advance(task: str) -> None:
            progress.update(bar, advance=1, description=f"evaluation of {task}")

        def baselines(task: str) -> dict[str, Baseline]:
            return baselines_of(datasets[task].spec, training[task])

        evaluation = evaluate(
            module, datasets, batch, config.data.workers, fabric.to_device, advance, baselines, processes, networks
        )
    if not processes.first:
        return values_of(evaluation)
    before = read_before(run.before, {task: len(dataset) for task, dataset in datasets.items()})
    record = {
        "split": "test",
        "step": trained.step,
        "samples": {task: len(dataset) for task, dataset in datasets.items()},
        "source": {task: dataset.source for task, dataset in datasets.items()},
        "units": {task: _units(dataset.spec) for task, dataset in datasets.items()},
        "training_mean": {task: {"samples": min(len(dataset), MEAN_SAMPLES)} for task, dataset in training.items()},
        "tasks": values_of(evaluation),
        "per_lead": leads_of(evaluation),
    } | ({"before": before} if before else {})
    text = json.dumps(record, indent=2) + "\n"
    if not _holds(run.metrics, text):  # these show other results
        run.report.unlink(missing_ok=True)
        remove_scores(run)
    write_text(run.metrics, text)
    remove_scores(run)
    write_scores(run, trained.step, evaluation)
    if before:
        line = forgetting_line(before, record["tasks"])
        console.print(Text(printable(line)), soft_wrap=True, highlight=False)
    return record["tasks"]


def _units(spec: TaskSpec) -> dict[str, float | str]:
    """A value v of the results is v * scale + offset of a unit."""
    return {"scale": spec.scale, "offset": spec.offset, "unit": spec.unit}


def _holds(path: Path, text: str) -> bool:
    try:
        return read_text(path) == text
    except (OSError, ValueError):
        return False


def change(result: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """By how much a task's squared error differs from that of repeating the last frame, as a share of it; None where
    that has no error at all."""
    model, last = result["model"]["mse"], result["repeat_last"]["mse"]
    return model / last - 1 if last else None


def results_table(results: Results) -> Table:
    """Model beside the baselines, per task."""
    beaten = tasks_beaten(results)
    title = f"better than repeating the last frame on {len(beaten)} of {len(results)} tasks"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("task")
    for column in ("MSE", "repeat-last", "change", "mean", "linear", "MAE", "PSNR", "SSIM", "own measure"):
        table.add_column(column, justify="right")
    for task, result in results.items():
        model = result["model"]
        share, colour = change(result), "green" if task in beaten else "red"
        table.add_row(
            Text(task),
            value_text(model, "mse"),
            value_text(result["repeat_last"], "mse"),
            "-" if share is None else f"[{colour}]{share:+.0%}",
            *(value_text(result.get(baseline, {}), "mse") for baseline in BASELINES[1:]),
            *(value_text(model, name) for name in ("mae", "psnr", "ssim")),
            _own(result),
        )
    return table


def value_text(values: Mapping[str, float | None], name: str) -> str:
    """A value as tables show it, "-" where there is none."""
    return MEASURES[name].text(values.get(name))


def _own(result: Mapping[str, Mapping[str, float | None]]) -> str:
    """The measure of a task's own discipline beside that of repeating the last frame."""
    names = {"csi": "CSI", "nino": "Nino3.4 r"}
    found = next((name for name in names if name in result["model"]), None)
    if found is None:
        return ""
    model, last = (value_text(result[forecaster], found) for forecaster in ("model", "repeat_last"))
    return f"{names[found]} {model} ({last})"
