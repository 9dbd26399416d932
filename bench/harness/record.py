"""The one form of all results: a record of groups, a group of entries that did the same work; kept as JSON."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.harness.machine import ROOT, commit, describe_machine, describe_versions
from bench.harness.timing import Quantiles, paired_ratio

SCHEMA = 1
RESULTS = ROOT / "bench" / "results"
MEASURED, WRONG, FAILED, UNAVAILABLE = "measured", "wrong", "failed", "unavailable"
FLOORS = ("linear", "no-adapters")  # entries that compute less, without adapters: what the rest is measured by
STATUSES = (MEASURED, WRONG, FAILED, UNAVAILABLE)


@dataclass
class Entry:
    """One entrant of a group.

    ``status``: "measured"; "wrong" (its result is not the reference's: never measured), "failed" (it raised) or
    "unavailable" (it is not installed, or not for this device), each with a ``reason``. ``samples`` are the rounds in
    the group's unit. ``error`` and ``allowed``: relative error against float64 and what it may be.
    """

    name: str
    title: str
    ours: bool = False
    status: str = MEASURED
    reason: str = ""
    samples: list[float] = field(default_factory=list)
    error: float | None = None
    allowed: float | None = None
    peak_mb: float | None = None
    note: str = ""

    @property
    def measured(self) -> bool:
        return self.status == MEASURED and bool(self.samples)

    @property
    def quantiles(self) -> Quantiles:
        return Quantiles.of(self.samples)


@dataclass
class Group:
    """Entries that did the same work, measured in the same rounds.

    ``shape``: sizes by name. ``items``: samples (sequences of frames) a call works on, for samples/s. ``axis`` and
    ``value``: what a scaling study varies, and its value here. ``mode``: "eager", or "graph" under a CUDA graph.
    ``targets``: by name of an entry, how many times what it takes our entry may take.
    """

    title: str
    dtype: str
    shape: dict[str, int]
    entries: list[Entry] = field(default_factory=list)
    unit: str = "ms"
    mode: str = "eager"
    items: int | None = None
    axis: str | None = None
    value: float | None = None
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def floor(self) -> str | None:
        """Name of the entry without adapters that was measured, if any."""
        return next((name for name in FLOORS if (entry := self.entry(name)) and entry.measured), None)

    def entry(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.name == name), None)

    def ratio(self, name: str, other: str) -> Quantiles | None:
        """How many times what ``other`` takes ``name`` takes, from paired rounds; None unless both are measured."""
        one, two = self.entry(name), self.entry(other)
        if one is None or two is None or not (one.measured and two.measured):
            return None
        if len(one.samples) != len(two.samples) or min(two.samples) <= 0:
            return None
        return paired_ratio(one.samples, two.samples)


@dataclass
class Record:
    """All groups of one comparison and what they were measured on."""

    comparison: str
    settings: dict[str, Any]
    groups: list[Group] = field(default_factory=list)
    schema: int = SCHEMA
    created: str = ""
    commit: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, comparison: str, device: torch.device, settings: dict[str, Any]) -> "Record":
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = cls(comparison, settings, created=now, commit=commit())
        record.machine, record.versions = describe_machine(device), describe_versions()
        return record

    def save(self, folder: Path) -> Path:
        """Writes ``folder/NAME.json`` (``NAME-cuda.json`` of a GPU) at once or not at all; returns the file."""
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "-cuda" if self.settings.get("device", "cpu").startswith("cuda") else ""
        file = folder / f"{self.comparison}{suffix}.json"
        tree = asdict(self)
        for group, entries in ((group, group["entries"]) for group in tree["groups"]):
            group["entries"] = [_with_quantiles(entry) for entry in entries]
        part = file.with_suffix(".part")
        part.write_text(json.dumps(tree, indent=1) + "\n")
        os.replace(part, file)
        return file


def load(file: Path) -> Record:
    """Reads a record and checks its form; raises ValueError naming the file and the key that is wrong."""
    try:
        tree = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        found = tree.get("schema") if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{file}: schema is {found!r}, expected {SCHEMA}")
    groups = []
    for number, group in enumerate(tree.pop("groups", [])):
        where = f"{file}: groups[{number}]"
        entries = [_entry(entry, f"{where}.entries[{i}]") for i, entry in enumerate(group.pop("entries", []))]
        groups.append(_build(Group, {**group, "entries": entries}, where))
    return _build(Record, {**tree, "groups": groups}, str(file))


def _with_quantiles(entry: dict[str, Any]) -> dict[str, Any]:
    """The samples' quantiles beside them, for people and other tools; they are derived again when read."""
    return {**entry, **asdict(Quantiles.of(entry["samples"]))} if entry["samples"] else entry


def _entry(tree: dict[str, Any], where: str) -> Entry:
    entry = _build(Entry, {key: value for key, value in tree.items() if key not in ("median", "p20", "p80")}, where)
    if entry.status not in STATUSES:
        raise ValueError(f"{where}.status: found {entry.status!r}, expected one of {STATUSES}")
    if entry.status != MEASURED and entry.samples:
        raise ValueError(
            f"{where}.samples: found {len(entry.samples)}, expected none of an entry that is {entry.status}"
        )
    return entry


def _build(kind: type, tree: dict[str, Any], where: str) -> Any:
    known = {item.name for item in fields(kind)}
    if unknown := sorted(tree.keys() - known):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}")
    try:
        return kind(**tree)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
