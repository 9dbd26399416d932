"""An eleventh task for a model that has learned ten: from that model, and from scratch, for as much processor time.

The task is real (sea surface temperature, `unistd/configs/data/ersst.yaml`), the ten are the demo's. Each way of adding
it trains for about two minutes of processor time on one thread, which a shared machine does not change much: a pilot
measures a step, and the schedule is planned for as many steps as fit.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from bench.harness.machine import ROOT, commit
from bench.harness.record import RESULTS
from bench.harness.tables import between_markers
from unistd.tasks import TASKS
from unistd.training import Config
from unistd.training.results import evaluate_run
from unistd.training.run import Run
from unistd.training.settings import dump_config, load_config
from unistd.training.trainer import Trainer

TASK, SECONDS, PILOT_STEPS, EPOCHS, BATCH = "ersst", 120.0, 24, 8, 2
OPTIONS = ["task_options.ersst.height=45", "task_options.ersst.width=90", "task_options.ersst.patch=6"]
LEARNED = ["ranks.epochs=0", "train.learned_lr_factor=0.1"]
WAYS = {
    "scratch": ("from scratch, alone", [f"tasks=[{TASK}.yaml]", "ranks.epochs=3"]),
    "kept": ("from the joint model, trunk and adapters frozen", [f"train.only=[{TASK}]", "ranks.epochs=0"]),
    "alone": ("from the joint model, alone", [f"train.only=[{TASK}]", *LEARNED]),
    "beside": ("from the joint model, beside the ten", LEARNED),
}


def config_of(way: str, root: str, joint: Path, folder: Path, epoch_steps: int, epochs: int = EPOCHS) -> Config:
    """The demo's config with the eleventh task, for a number of steps."""
    description = ROOT / "unistd" / "configs" / "data" / f"{TASK}.yaml"
    changes = [change.replace(f"{TASK}.yaml", str(description)) for change in WAYS[way][1]]
    if way != "scratch":
        changes += [f"tasks=[{','.join(TASKS)},{description}]", f"train.init_from={joint}"]
    if way == "kept":
        changes.append("train.freeze=[trunk,adapters]")
    if epochs < EPOCHS:
        changes = [change.replace("ranks.epochs=3", "ranks.epochs=0") for change in changes]
    length = [f"train.epochs={epochs}", f"train.epoch_samples={epoch_steps * BATCH}", "data.val_samples=0"]
    return load_config(
        "demo", [f"run={folder}", f"data.root={root}", "data.generated=all", *OPTIONS, *changes, *length]
    )


def train(config: Config) -> float:
    """Trains a run; returns the seconds of processor time that its steps took."""
    run = Run(Path(config.run))
    run.folder.mkdir(parents=True)
    trainer = Trainer(config, run, Console(file=io.StringIO()))
    run.config.write_text(dump_config(config))
    begin = time.process_time()
    trainer.fit()
    return time.process_time() - begin


def measure(way: str, root: str, joint: Path, folder: Path) -> dict[str, object]:
    """Trains the eleventh task in one way and measures all tasks on their test split."""
    root = _alone(root, folder)
    pilot = train(config_of(way, root, joint, folder / f"{way} pilot", PILOT_STEPS, epochs=1)) / PILOT_STEPS
    config = config_of(way, root, joint, folder / way, max(1, round(SECONDS / pilot / EPOCHS)))
    seconds = train(config)
    results = evaluate_run(config.run, Console(file=io.StringIO()))
    steps = Run(Path(config.run)).log.read_text().splitlines()
    last = {task: result["repeat_last"]["mse"] for task, result in results.items()}
    errors = {task: result["model"]["mse"] for task, result in results.items()}
    return {
        "way": way,
        "seconds": seconds,
        "steps": max(json.loads(line)["step"] for line in steps),
        "repeat_last": last[TASK],
        "error": errors.pop(TASK),
        "old": errors,
    }


def _alone(root: str, folder: Path) -> str:
    """A folder of the eleventh task's files alone, so that the ten are generated, as they were learned."""
    data = folder / "data"
    data.mkdir()
    (data / "sst").symlink_to(Path(root).resolve() / "sst")
    return str(data)


def changes(outcome: dict, before: dict[str, float]) -> list[float]:
    """By how much the ten tasks' errors have grown, as shares of what they were."""
    return [outcome["old"][task] / before[task] - 1 for task in before] if outcome["old"] else []


def table(record: dict) -> str:
    """A row a way."""
    lines = ["| | processor time | steps | error of the eleventh task | against repeating | the ten tasks' error |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for outcome in record["ways"]:
        grown = changes(outcome, record["before"])
        mean = f"{sum(grown) / len(grown):+.1%} ({min(grown):+.1%} to {max(grown):+.1%})" if grown else "-"
        share = outcome["error"] / outcome["repeat_last"] - 1
        lines.append(
            f"| {WAYS[outcome['way']][0]} | {outcome['seconds']:.0f} s | {outcome['steps']} | {outcome['error']:.6f} |"
            f" {share:+.0%} | {mean} |"
        )
    note = (
        "Mean squared error on held-out samples, values in [0, 1]; of the ten, the mean of the changes and their range."
    )
    return "\n".join([*lines, "", f"<sub>{note} One thread, one seed; commit {record['commit']}.</sub>"])


def main() -> None:
    """Runs every way in a process of its own, two at a time; writes results/eleventh.json and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of sst/sst.mnmean.nc")
    parser.add_argument("--joint", type=Path, help="a finished run of the config demo; default: it is trained first")
    parser.add_argument("--way", choices=WAYS, help="this one alone, printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        joint = options.joint
        if joint is None:
            joint = Path(folder) / "joint"
            subprocess.run([sys.executable, "-m", "unistd", "train", "--config", "demo", f"run={joint}"], check=True)
        if options.way:
            print(json.dumps(measure(options.way, options.root, joint, Path(folder))))
            return
        command = [sys.executable, "-m", "bench.eleventh", "--root", options.root, "--joint", str(joint), "--way"]
        ways, outcomes = list(WAYS), []
        for first in range(0, len(ways), 2):
            started = [subprocess.Popen([*command, way], stdout=subprocess.PIPE, text=True) for way in ways[first:][:2]]
            outcomes += [json.loads(process.communicate()[0]) for process in started]
        tasks = json.loads(Run(joint).metrics.read_text())["tasks"]
    before = {task: result["model"]["mse"] for task, result in tasks.items()}
    record = {"task": TASK, "commit": commit(), "before": before, "ways": outcomes}
    (RESULTS / "eleventh.json").write_text(json.dumps(record, indent=1) + "\n")
    page = ROOT / "bench" / "README.md"
    page.write_text(between_markers(page.read_text(), "eleventh", table(record)))


if __name__ == "__main__":
    main()
