"""Tables and figures of a ledger: a question each, errors as shares of repeating the last frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log
from pathlib import Path
from statistics import mean

from bench.forecasting.entrants import ENTRANTS
from bench.forecasting.ledger import Ledger, Trained

BASELINES = {"linear": "the line through the last two frames", "training_mean": "mean of the training frames"}
MEASURES = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "vrmse": "VRMSE",
    "csi": "Critical success index of radar",
    "nino": "Correlation of the Nino3.4 index",
}
Cell = list[float]  # a value a seed


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return exp(mean(map(log, values)))


def share(ledger: Ledger, run: Trained, task: str) -> float:
    """A model's squared error over that of repeating the last frame."""
    return run.values[task]["mse"] / ledger.baselines[task]["repeat_last"]["mse"]


def alone(ledger: Ledger, entrant: str, task: str, budget: str) -> list[Trained]:
    """The trainings of one task by an entrant, by seed, without changes. UniSTD's at equal samples are those at equal
    time: by these the samples are counted."""
    budget = "time" if entrant == "unistd" else budget
    runs = ledger.find(entrant=entrant, tasks=[task], budget=budget, changes=[])
    return sorted(runs, key=lambda run: run.seed)


def joint(ledger: Ledger, entrant: str, count: int) -> list[Trained]:
    """An entrant's joint trainings of so many tasks, by seed."""
    runs = [run for run in ledger.find(entrant=entrant, changes=[]) if len(run.tasks) == count and count > 1]
    return sorted(runs, key=lambda run: run.seed)


def tasks_of(ledger: Ledger) -> list[str]:
    """The tasks that any training has, in the order of the baselines."""
    return list(ledger.baselines)


def error_table(ledger: Ledger, budget: str) -> str:
    """A row a task, a column a model: the mean over the seeds and, in brackets, their range."""
    tasks = tasks_of(ledger)
    names = [name for name in ENTRANTS if any(alone(ledger, name, task, budget) for task in tasks)]
    columns: dict[str, list[Cell]] = {
        ENTRANTS[name].title: [
            [share(ledger, run, task) for run in alone(ledger, name, task, budget)] for task in tasks
        ]
        for name in names
    }
    for name, title in BASELINES.items():
        columns[title] = [
            [base[name]["mse"] / base["repeat_last"]["mse"]] if name in (base := ledger.baselines[task]) else []
            for task in tasks
        ]
    rows = [[task, *(_cell(column[i]) for column in columns.values())] for i, task in enumerate(tasks)]
    rows.append(["geometric mean", *(_overall(column) for column in columns.values())])
    return markdown(["", *columns], rows)


def measure_table(ledger: Ledger, measure: str, budget: str = "time") -> str:
    """The same of another measure, of repeating the last frame too."""
    tasks = [task for task in tasks_of(ledger) if measure in ledger.baselines[task]["repeat_last"]]
    names = [name for name in ENTRANTS if any(alone(ledger, name, task, budget) for task in tasks)]
    rows = []
    for task in tasks:
        found = [[run.values[task][measure] for run in alone(ledger, name, task, budget)] for name in names]
        rows.append([task, *map(_cell, found), _cell([ledger.baselines[task]["repeat_last"][measure]])])
    return markdown(["", *(ENTRANTS[name].title for name in names), "repeat the last frame"], rows)


def over_single(ledger: Ledger, entrant: str, count: int) -> dict[str, Cell]:
    """By task, a joint model's error over that of the model of that task alone with as many samples, seed by seed."""
    found: dict[str, Cell] = {}
    for run in joint(ledger, entrant, count):
        for task in run.tasks:
            single = [one for one in alone(ledger, entrant, task, "samples") if one.seed == run.seed]
            if single:
                found.setdefault(task, []).append(run.values[task]["mse"] / single[0].values[task]["mse"])
    return found


def joint_table(ledger: Ledger) -> str:
    """A row a task, a column a joint model: its error over the single-task model's, below 1 where joint is better."""
    counts = sorted({len(run.tasks) for run in ledger.runs if len(run.tasks) > 1})
    columns = {
        f"{ENTRANTS[name].title}, {count} tasks": ratios
        for name in ENTRANTS
        for count in counts
        if (ratios := over_single(ledger, name, count))
    }
    rows = [[task, *(_cell(column.get(task, [])) for column in columns.values())] for task in tasks_of(ledger)]
    rows.append(["geometric mean", *(_overall(list(column.values())) for column in columns.values())])
    return markdown(["", *columns], rows)


def section(ledger: Ledger, stem: str) -> str:
    """What a page says of a ledger: the questions, each with its table, and the figures that were drawn."""
    parts = ["**Equal processor time** (error as a share of repeating the last frame)", error_table(ledger, "time")]
    parts += [
        _figure(stem, "time"),
        *(rival_sentence(ledger, rival, "time") for rival in ENTRANTS if rival != "unistd"),
    ]
    if any(alone(ledger, name, task, "samples") for name in ENTRANTS if name != "unistd" for task in tasks_of(ledger)):
        parts += ["**Equal samples**", error_table(ledger, "samples"), _figure(stem, "samples")]
    if any(len(run.tasks) > 1 for run in ledger.runs):
        parts += [
            "**Joint over single-task, as many samples of each task**",
            joint_table(ledger),
            _figure(stem, "joint"),
        ]
    parts += ["**Error at each lead time**, equal processor time", _figure(stem, "leads")]
    for measure, title in MEASURES.items():
        if any(measure in ledger.baselines[task]["repeat_last"] for task in tasks_of(ledger)):
            parts += [f"**{title}**, equal processor time", measure_table(ledger, measure)]
    return "\n\n".join(part for part in [*parts, provenance(ledger)] if part)


def _figure(stem: str, name: str) -> str:
    return f"![{stem}-{name}](results/{stem}-{name}.png)"


def screening_table(ledger: Ledger, against: Sequence[str]) -> str:
    """A row a change of UniSTD: its error on each task, and the geometric mean of these over those of the changes
    `against`."""
    tasks = tasks_of(ledger)
    found = {tuple(run.changes): {} for run in ledger.runs}
    for run in ledger.runs:
        for task in run.tasks:
            found[tuple(run.changes)].setdefault(task, []).append(share(ledger, run, task))
    base = found[tuple(against)]
    rows = []
    for changes, cells in found.items():
        over = geometric_mean([mean(cells[task]) / mean(base[task]) for task in tasks])
        steps = mean(run.steps for run in ledger.find(changes=list(changes)))
        row = [f"`{' '.join(changes) or 'as is'}`", *(_cell(cells[task]) for task in tasks), f"{over:.2f}"]
        rows.append((over, [*row, f"{steps:.0f}"]))
    head = ["", *tasks, f"over `{' '.join(against)}`", "steps"]
    return markdown(head, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def rival_sentence(ledger: Ledger, rival: str, budget: str) -> str:
    """UniSTD's error over a rival's: on how many tasks it is smaller, and the geometric mean."""
    ratios = {}
    for task in tasks_of(ledger):
        ours, theirs = (alone(ledger, name, task, budget) for name in ("unistd", rival))
        if ours and theirs:
            ratios[task] = mean(share(ledger, run, task) for run in ours) / mean(
                share(ledger, run, task) for run in theirs
            )
    if not ratios:
        return ""
    better = sum(ratio <= 1 for ratio in ratios.values())
    worst = max(ratios, key=ratios.__getitem__)
    return (
        f"UniSTD's error over {ENTRANTS[rival].title}'s: at most 1 on {better} of {len(ratios)} tasks, geometric mean"
        f" {geometric_mean(list(ratios.values())):.2f}, largest {ratios[worst]:.2f} ({worst})."
    )


def provenance(ledger: Ledger) -> str:
    """What the trainings ran on."""
    machine, commits = ledger.about["machine"], sorted({run.commit for run in ledger.runs})
    seeds = sorted({run.seed for run in ledger.runs})
    minutes = sorted({run.minutes for run in ledger.runs})
    return (
        f"<sub>{machine['cpu']} ({', '.join(machine['instructions'])}), one thread; torch"
        f" {ledger.about['versions']['torch']}; commit {', '.join(commits)}; {ledger.runs[-1].created[:10]}."
        f" {', '.join(f'{60 * value:.0f}' for value in minutes)} s of processor time a task; seeds"
        f" {', '.join(map(str, seeds))} (a cell has the mean over those that ran and, in brackets, the range).</sub>"
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(values: Cell) -> str:
    if not values:
        return "-"
    digits = 1 if max(map(abs, values)) >= 10 else 2
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _overall(column: Sequence[Cell]) -> str:
    """The geometric mean over the tasks of the means over the seeds, where every task has one."""
    return f"{geometric_mean([mean(cell) for cell in column]):.2f}" if column and all(column) else "-"


def draw(ledger: Ledger, folder: Path, stem: str) -> list[Path]:
    """A figure a question: errors at equal time and at equal samples, joint over single, error per lead time."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    for name, make in _FIGURES.items():
        figure = make(ledger)
        if figure is not None:
            file = folder / f"{stem}-{name}.png"
            figure.savefig(file, dpi=130)
            drawn.append(file)
    return drawn


def _errors(budget: str) -> Callable[[Ledger], object]:
    def make(ledger: Ledger):
        tasks = tasks_of(ledger)
        series = {
            ENTRANTS[name].title: {
                task: [share(ledger, run, task) for run in alone(ledger, name, task, budget)] for task in tasks
            }
            for name in ENTRANTS
        }
        return _dots(series, tasks, "squared error over that of repeating the last frame")

    return make


def _joint(ledger: Ledger):
    counts = sorted({len(run.tasks) for run in ledger.runs if len(run.tasks) > 1})
    series = {
        f"{ENTRANTS[name].title}, {count} tasks": over_single(ledger, name, count)
        for name in ENTRANTS
        for count in counts
    }
    return _dots(series, tasks_of(ledger), "joint model's squared error over the single-task model's")


def _dots(series: dict[str, dict[str, Cell]], tasks: Sequence[str], label: str):
    """A place a task, a dot a seed, a colour a series; None where nothing is there."""
    from matplotlib.figure import Figure

    series = {title: cells for title, cells in series.items() if any(cells.values())}
    if not series:
        return None
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    axis = figure.subplots()
    for index, (title, cells) in enumerate(series.items()):
        points = [
            (place + 0.12 * (index - (len(series) - 1) / 2), value)
            for place, task in enumerate(tasks)
            for value in cells.get(task, [])
        ]
        axis.plot(*zip(*points, strict=True), "o", color=f"C{index}", markersize=4, alpha=0.8, label=title)
    axis.axhline(1, color="0.5", linewidth=0.8, linestyle="--")
    axis.set_yscale("log")
    axis.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right", fontsize=8)
    axis.set_ylabel(label, fontsize=8)
    axis.legend(fontsize=8, ncols=len(series))
    return figure


def _leads(ledger: Ledger):
    """A panel a task: the error at each lead time, the mean over the seeds."""
    from matplotlib.figure import Figure

    tasks = [task for task in tasks_of(ledger) if alone(ledger, "unistd", task, "time")]
    if not tasks:
        return None
    columns = min(5, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(8.5, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes, tasks, strict=False):
        for index, name in enumerate(ENTRANTS):
            runs = alone(ledger, name, task, "time")
            if runs:
                lines = zip(*(run.leads[task]["mse"] for run in runs), strict=True)
                values = [mean(line) for line in lines]
                axis.plot(range(1, len(values) + 1), values, color=f"C{index}", label=ENTRANTS[name].title)
        repeated = ledger.baselines[task]["leads"]["repeat_last"]["mse"]
        axis.plot(range(1, len(repeated) + 1), repeated, color="0.5", linestyle="--", label="repeat the last frame")
        axis.set_title(task, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_ylim(bottom=0, top=1.1 * max(repeated))
    axes[0].legend(fontsize=6)
    figure.supxlabel("lead time, frames", fontsize=8)
    figure.supylabel("mean squared error", fontsize=8)
    return figure


_FIGURES = {"time": _errors("time"), "samples": _errors("samples"), "joint": _joint, "leads": _leads}
