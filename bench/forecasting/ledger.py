"""The record of a comparison of forecasters: what a step takes, the baselines, a line a training; it grows by runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.harness.machine import commit, describe_machine, describe_versions
from unistd.files import write_text

SCHEMA = 1


@dataclass(frozen=True)
class Trained:
    """One training and what it gave.

    ``budget``: "time" or "samples"; ``minutes``: of processor time that a model of one task had, or, of equal samples,
    that UniSTD's had. ``changes``: of the config. ``batches``: per task; ``seconds``: steps times what one takes.
    ``values`` and ``leads``: measures by task, over the test samples and per lead time.
    """

    entrant: str
    tasks: list[str]
    seed: int
    budget: str
    minutes: float
    changes: list[str]
    steps: int
    batches: dict[str, int]
    seconds: float
    parameters: int
    values: dict[str, dict[str, float | None]]
    leads: dict[str, dict[str, list[float | None]]]
    created: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple:
        """What makes a training another one."""
        return self.entrant, tuple(self.tasks), self.seed, self.budget, self.minutes, tuple(self.changes)


class Ledger:
    """A file of trainings, written anew, at once or not at all, after each of them."""

    def __init__(self, file: Path, settings: dict[str, Any]):
        self.file = file
        self.settings = settings
        self.step_seconds: dict[str, float] = {}
        self.baselines: dict[str, Any] = {}
        self.runs: list[Trained] = []
        self.about: dict[str, Any] = {}
        if file.is_file():
            self._read()

    def _read(self) -> None:
        tree = json.loads(self.file.read_text())
        if tree.get("schema") != SCHEMA:
            raise ValueError(f"{self.file}: schema is {tree.get('schema')!r}, expected {SCHEMA}")
        if tree["settings"] != self.settings and self.settings:
            raise ValueError(f"{self.file}: its settings are {tree['settings']}, expected {self.settings}")
        self.settings, self.step_seconds, self.baselines = tree["settings"], tree["step_seconds"], tree["baselines"]
        self.about = {key: tree[key] for key in ("machine", "versions")}
        self.runs = [Trained(**run) for run in tree["runs"]]

    def find(self, **wanted: Any) -> list[Trained]:
        """The trainings that have these attributes."""
        return [run for run in self.runs if all(getattr(run, key) == value for key, value in wanted.items())]

    def has(self, key: tuple) -> bool:
        """Whether there is a training of that `Trained.key`."""
        return any(run.key == key for run in self.runs)

    def add(self, run: dict[str, Any]) -> Trained:
        """Adds a training, stamped with date and commit, and writes the file."""
        found = Trained(**run, created=datetime.now(UTC).isoformat(timespec="seconds"), commit=commit())
        self.runs.append(found)
        self.save()
        return found

    def save(self) -> None:
        """Writes the file."""
        about = self.about or {"machine": describe_machine(torch.device("cpu")), "versions": describe_versions()}
        tree = {"schema": SCHEMA, "settings": self.settings, **about, "step_seconds": self.step_seconds}
        tree |= {"baselines": self.baselines, "runs": [asdict(run) for run in self.runs]}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, _compact(tree) + "\n")


def _compact(tree: dict[str, Any]) -> str:
    """JSON with a line for each training."""
    rounded = json.loads(json.dumps(tree), parse_float=lambda text: float(f"{float(text):.6g}"))
    runs = rounded.pop("runs")
    head = json.dumps(rounded, indent=1)[:-2]
    return head + ',\n "runs": [\n' + ",\n".join(f"  {json.dumps(run)}" for run in runs) + "\n ]\n}"


def step_key(entrant: str, tasks: Sequence[str], changes: Sequence[str]) -> str:
    """Names what a step of a model on some tasks takes, in `Ledger.step_seconds`."""
    return " ".join([entrant, "+".join(tasks), *changes])
