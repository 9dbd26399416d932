"""Puts a run's results, pictures and charts together as report.html."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup

from fastmoe_lora import ranks_frozen
from unistd.files import read_text, write_text
from unistd.messages import printable
from unistd.model import UniSTD
from unistd.report.adapters import gate_groups, rank_groups
from unistd.report.charts import learning_curves, rank_curves
from unistd.report.examples import example
from unistd.report.leads import lead_curves, lead_measures
from unistd.report.records import read_records
from unistd.training.config import Config
from unistd.training.data import steps_per_epoch
from unistd.training.evaluate import BASELINES, Results, held_out, held_out_sizes, tasks_beaten
from unistd.training.forgetting import growths
from unistd.training.records import RunResults, read_results
from unistd.training.results import change, value_text
from unistd.training.run import read_run
from unistd.training.sources import check_data


def write_report(folder: str | Path, which: str = "last") -> Path:
    """Writes report.html of an evaluated run and returns its path; which: of its checkpoints, see `read_chosen`.

    Raises CheckpointError as `read_run` and `read_results` do.
    """
    trained = read_run(folder, which)
    run, config, model = trained.run, trained.config, trained.model
    measured, log = read_results(run, config.tasks, trained.step), read_records(run.log, config.tasks)
    results = measured.values
    datasets = held_out(config, "test")
    check_data(trained.sources, trained.units, datasets, trained.checkpoint)
    examples = {task: example(model, spec, datasets[task]) for task, spec in model.tasks.items()}
    page = _template().render(
        name=os.fsencode(run.folder.resolve().name).decode("utf-8", "replace"),
        config_text=read_text(run.config),
        facts=_facts(config, model, results, log),
        rows=_rows(model, results, datasets),
        kept=_kept(model, measured),
        measures=_measures(model, measured),
        leads={
            task: Markup(lead_curves(task, leads)) for task, leads in measured.leads.items() if lead_measures(leads)
        },
        mean_samples=sorted(set(measured.mean_samples.values())),
        data=_data(config, datasets),
        examples=examples,
        curves=Markup(learning_curves(log, config.ranks.epochs * steps_per_epoch(config))),
        rank_curves=Markup(rank_curves(log)),
        ranks=rank_groups(model),
        max_rank=config.model.max_rank,
        gates=gate_groups({task: shown.gates for task, shown in examples.items()}),
        frozen=ranks_frozen(model),
    )
    write_text(run.report, page)
    return run.report


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("unistd.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["value"] = value_text
    return environment.get_template("report.html.j2")


def _facts(config: Config, model: UniSTD, results: Results, log: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the head of the page says in large figures: (figure, what it is)."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = model.ramoe_layers().values()
    base = ("weight", "bias")
    adapters = sum(p.numel() for layer in layers for name, p in layer.named_parameters() if name not in base)
    experts = sum(layer.rank.numel() for layer in layers)
    changes = [share for result in results.values() if (share := change(result)) is not None]
    mean = _percent(sum(changes) / len(changes) if changes else None)
    seconds = max((record["seconds"] for record in log if "seconds" in record), default=0)
    return [
        (f"{len(tasks_beaten(results))} of {len(results)}", "tasks better than repeating the last frame"),
        (mean, "squared error against repeating the last frame, mean over tasks"),
        (_count(parameters), f"parameters, {_count(adapters)} of them in {experts} experts"),
        (_duration(seconds), f"of training, {config.train.epochs} epochs of {steps_per_epoch(config)} steps"),
    ]


def _rows(model: UniSTD, results: Results, datasets: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for task, spec in model.tasks.items():
        result, last = results[task]["model"], results[task]["repeat_last"]
        rows.append(
            {
                "task": task,
                "spec": spec,
                "model": result,
                "last": last,
                "change": change(results[task]),
                "generated": datasets[task].source == "generated",
            }
        )
    return rows


def _data(config: Config, datasets: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each task was trained and measured on; `datasets`: those of the test split."""
    training, held = held_out(config, "train"), held_out_sizes(config)
    rows = []
    for task, dataset in datasets.items():
        sizes = {"train": len(training[task]), "val": 0} | held[task]
        rows.append({"spec": dataset.spec, "source": printable(dataset.source), "sizes": sizes})
    return rows


def _kept(model: UniSTD, measured: RunResults) -> list[dict[str, Any]]:
    """Of the tasks that were learned before this run: their errors then and now."""
    grown = growths(measured.before, measured.values)
    return [
        {
            "spec": model.tasks[task],
            "before": measured.before[task],
            "now": measured.values[task]["model"],
            "change": share,
        }
        for task, share in grown.items()
    ]


def _measures(model: UniSTD, measured: RunResults) -> list[dict[str, Any]]:
    """Every value of every task: rows of (name, the model's value, each baseline's), for the long tables."""
    tables = []
    for task, result in measured.values.items():
        forecasters = [name for name in ("model", *BASELINES) if name in result]
        rows = [(name, [_figure(result[who].get(name)) for who in forecasters]) for name in result["model"]]
        tables.append({"spec": model.tasks[task], "forecasters": forecasters, "rows": rows})
    return tables


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    """A signed share with a true minus sign: -0.39 -> "−39 %"; "-" for none."""
    if share is None:
        return "-"
    return f"{share * 100:+.0f} %".replace("-", "\N{MINUS SIGN}")


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.0f} k"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:02d} s"
