"""Forecasts of UniSTD beside those of the models people would use instead, at equal processor time and equal samples.

Budgets are steps. What a step takes, in processor time on one thread, is measured first (`--measure`, on a quiet
machine); a model of one task then gets the steps that fill `--minutes`. With `--budget samples` each model gets, of
each task, the batches that UniSTD's model of that task alone has in these minutes; so do joint models. A training is
thereby a function of its seed, whatever else the machine does. What was run before is not run again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.forecasting import report
from bench.forecasting.entrants import ENTRANTS
from bench.forecasting.ledger import Ledger, step_key
from bench.forecasting.training import Course, Plan
from bench.harness.machine import ROOT
from bench.harness.record import RESULTS
from bench.harness.tables import between_markers
from unistd.tasks import TASKS
from unistd.training import Config
from unistd.training.data import MixedDataset, split_datasets, task_specs
from unistd.training.evaluate import baselines_of, evaluate
from unistd.training.settings import load_config

REAL = ("moving_mnist", "nyc_taxi", "traffic4cast_speed", "fmi_radar", "ersst", "kitti_grey", "weizmann")
SUITES = {"demo": tuple(TASKS), "real": REAL}
PAGE = ROOT / "bench" / "SKILL.md"
SCREENED_AGAINST = ["optim.lr=0.001"]
BATCH, TRAIN_SAMPLES, TEST_SAMPLES = 4, 1024, 64
KEPT = ("mse", "psnr", "ssim", "vrmse", "csi", "nino")  # measures that are recorded


class Comparison:
    """Configs, data and plans of one suite of tasks."""

    def __init__(self, suite: str, root: str | None, minutes: float, ledger: Ledger):
        self.suite, self.root, self.minutes, self.ledger = suite, root, minutes, ledger
        self._data: dict[tuple[str, ...], MixedDataset] = {}

    def config(self, tasks: list[str], changes: list[str]) -> Config:
        """The suite's config for these tasks."""
        own = [f"tasks=[{','.join(tasks)}]", f"train.batch_size={BATCH}", f"data.train_samples={TRAIN_SAMPLES}"]
        own += [f"data.test_samples={TEST_SAMPLES}", "data.cache=true", "train.precision=bf16-mixed"]
        return load_config(self.suite, own + ([f"data.root={self.root}"] if self.root else []) + changes)

    def data(self, config: Config) -> MixedDataset:
        """The training samples, kept in memory."""
        key = tuple(config.tasks)
        if key not in self._data:
            self._data[key] = MixedDataset(split_datasets(config, "train"), cache=True)
        return self._data[key]

    def step_seconds(self, name: str, tasks: list[str], changes: list[str]) -> float:
        """What a step takes; measured once."""
        key = step_key(name, tasks, changes)
        known = self.ledger.step_seconds
        if key not in known:
            config = self.config(tasks, changes)
            course = Course(ENTRANTS[name], config, Plan(dict.fromkeys(tasks, 100), seed=0), self.data(config))
            known[key] = course.seconds_per_step()
            print(f"{known[key] * 1e3:8.1f} ms a step  {key}", flush=True)
            self.ledger.save()
        return known[key]

    def plan(self, name: str, tasks: list[str], changes: list[str], budget: str, seed: int) -> Plan:
        """The batches of each task."""
        if budget == "time":
            total = 60 * self.minutes * len(tasks) / self.step_seconds(name, tasks, changes)
            return Plan(dict.fromkeys(tasks, max(1, round(total))), seed)
        return Plan(
            {task: max(1, round(60 * self.minutes / self.step_seconds("unistd", [task], []))) for task in tasks}, seed
        )

    def run(self, name: str, tasks: list[str], changes: list[str], budget: str, seed: int) -> None:
        """Trains and measures one model, unless that was done; UniSTD's of one task at equal samples is that at equal
        time."""
        if name == "unistd" and len(tasks) == 1 and not changes:
            budget = "time"
        if self.ledger.has((name, tuple(tasks), seed, budget, self.minutes, tuple(changes))):
            return
        config, plan = self.config(tasks, changes), self.plan(name, tasks, changes, budget, seed)
        model = Course(ENTRANTS[name], config, plan, self.data(config)).run()
        values, leads = self.measure(model, config)
        self.ledger.add(
            {
                "entrant": name,
                "tasks": tasks,
                "seed": seed,
                "budget": budget,
                "minutes": self.minutes,
                "changes": changes,
                "steps": plan.steps,
                "batches": dict(plan.batches),
                "seconds": plan.steps * self.step_seconds(name, tasks, changes),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "values": values,
                "leads": leads,
            }
        )
        shares = {task: values[task]["mse"] / self.ledger.baselines[task]["repeat_last"]["mse"] for task in tasks}
        shown = " ".join(f"{task} {share:.3f}" for task, share in shares.items())
        print(f"{name} {' '.join(changes)} {budget} seed {seed}, {plan.steps} steps: {shown}", flush=True)

    def measure(self, model: torch.nn.Module, config: Config) -> tuple[dict, dict]:
        """The measures on the test samples, by task; keeps those of the baselines when a task is first seen."""
        data, specs = self.data(config), task_specs(config)

        def baselines(task: str) -> dict:
            return {} if task in self.ledger.baselines else baselines_of(specs[task], data.datasets[task])

        found = evaluate(model, split_datasets(config, "test"), 16, baselines=baselines)
        for task, scores in found.items():
            if task not in self.ledger.baselines:
                named = {name: score for name, score in scores.items() if name != "model"}
                self.ledger.baselines[task] = {name: _kept(score.values) for name, score in named.items()}
                self.ledger.baselines[task]["leads"] = {
                    name: {"mse": score.leads["mse"]} for name, score in named.items()
                }
        return (
            {task: _kept(scores["model"].values) for task, scores in found.items()},
            {task: {"mse": scores["model"].leads["mse"]} for task, scores in found.items()},
        )


def write_pages(files: Sequence[Path], page: Path) -> None:
    """Figures beside the files, tables between the markers of a page."""
    text = page.read_text()
    for file in files:
        ledger = Ledger(file, {})
        report.draw(ledger, file.parent, file.stem)
        filled = between_markers(text, file.stem, report.section(ledger, file.stem))
        text = text if filled is None else filled
    screening = Ledger(RESULTS / "screening.json", {})
    text = between_markers(text, "screening", screened(screening)) or text
    page.write_text(text)


def screened(ledger: Ledger) -> str:
    """What the page says of the changes that were tried."""
    return f"{report.screening_table(ledger, SCREENED_AGAINST)}\n\n{report.provenance(ledger)}"


def _kept(values: dict) -> dict:
    return {name: value for name, value in values.items() if name in KEPT}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench skill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, default="demo", help="generated tasks, or real samples below --root")
    parser.add_argument("--root", help="folder of the real samples (see unistd/configs/data)")
    parser.add_argument("--tasks", nargs="+", help="default: all of the suite")
    parser.add_argument("--entrants", nargs="+", choices=ENTRANTS, default=list(ENTRANTS))
    parser.add_argument("--budget", choices=("time", "samples"), default="time")
    parser.add_argument("--joint", action="store_true", help="one model of all these tasks, with equal samples")
    parser.add_argument("--minutes", type=float, default=1 / 3, help="of processor time for a model of one task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--change", nargs="*", default=[], help="of UniSTD's config, as model.hidden=32")
    parser.add_argument("--measure", action="store_true", help="measure what a step takes, and end")
    parser.add_argument("--output", type=Path, help="default: bench/results/skill.json, skill-real.json")
    parser.add_argument("--report", action="store_true", help="no training: figures and tables of what was recorded")
    given = parser.parse_args(arguments)
    if given.report:
        write_pages(sorted(RESULTS.glob("skill*.json")), PAGE)
        return
    if given.suite == "real" and not given.root:
        parser.error("--suite real: expected --root FOLDER")
    torch.set_num_threads(1)
    output = given.output or RESULTS / ("skill.json" if given.suite == "demo" else f"skill-{given.suite}.json")
    settings = {"suite": given.suite, "batch": BATCH, "train_samples": TRAIN_SAMPLES, "test_samples": TEST_SAMPLES}
    comparison = Comparison(given.suite, given.root, given.minutes, Ledger(output, settings))
    tasks = given.tasks or list(SUITES[given.suite])
    sets = [tasks] if given.joint else [[task] for task in tasks]
    changes = {name: given.change if name in ("unistd", "vit") else [] for name in given.entrants}
    if given.measure:
        for name in given.entrants:
            for group in sets:
                comparison.step_seconds(name, group, changes[name])
        return
    budget = "samples" if given.joint else given.budget
    for seed in range(given.seeds):
        for group in sets:
            for name in given.entrants:
                comparison.run(name, group, changes[name], budget, seed)
