"""What a run writes down while it trains: log.jsonl (one record a line) and TensorBoard events."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import TypedDict

from unistd.files import kind, open_file, write_text
from unistd.training.evaluate import Results
from unistd.training.run import Run

MAX_LINE = 1 << 20  # bytes of a record; ten tasks need three thousand
EVENTS = "events.out.tfevents.*"  # TensorBoard's name for its files


@with_config(ConfigDict(strict=True, extra="allow"))
class Record(TypedDict):
    """A line of log.jsonl: what is known before the first step, or the state after one, or held-out results."""

    step: Annotated[int, Field(ge=0)]
    baselines: NotRequired[dict[str, float]]
    losses: NotRequired[dict[str, float]]
    val: NotRequired[Results]
    lr: NotRequired[float]
    samples_per_second: NotRequired[float]
    waiting: NotRequired[float]  # share of the step in which its batch was waited for
    seconds: NotRequired[float]
    window: NotRequired[float]
    loss_scale: NotRequired[float]  # of float16
    rank_mean: NotRequired[float]
    rank_spread: NotRequired[float]
    rank_sum: NotRequired[float]
    skipped: NotRequired[Annotated[int, Field(ge=1)]]  # of these steps, those that changed nothing


_RECORD = TypeAdapter(Record)


class RunLog:
    """Averages the steps' losses and writes a record every `every` steps.

    A record is {"step", "losses": {task: mean MSE}, and the values of `step`'s `extra`}, and "skipped" where steps were
    skipped, whose losses are not in the means; before the first step
    {"step": 0, "baselines": {task: MSE of repeating the last frame}}; after an epoch {"step", "val": results}.
    The event files hold the same numbers and are written anew from the records at each start: what an earlier attempt
    left in them need not be whole, and TensorBoard puts files of the same second in any order.

    Args:
        state: a `state_dict` that goes with the run's checkpoint: its records are kept, later ones are dropped. None:
            a new run.
    """

    def __init__(self, run: Run, every: int, state: dict[str, Any] | None = None) -> None:
        state = state or {"records": 0, "losses": {}}
        kept = read_log(run.log)[: state["records"]]
        self.records = len(kept)
        self.lost = state["records"] - len(kept)  # records that the checkpoint counts and the file has no more
        self.validated = max((record["step"] for record in kept if "val" in record), default=0)
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_text(run.log, lines)
        self._file = run.log.open("a", encoding="utf-8")
        for file in run.tensorboard.glob(EVENTS):
            file.unlink()
        # what a TensorBoard that is running has read from the former files, it forgets at this purge
        self._board = SummaryWriter(run.tensorboard, purge_step=0)
        self._replay(kept)
        self._every = every
        self._losses = {task: list(losses) for task, losses in state["losses"].items()}
        self._skipped = state.get("skipped", 0)
        self._extra: dict[str, float] = {}
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """How many records there are, all of them safely on disk, and the losses of the steps since the last one."""
        os.fsync(self._file.fileno())
        losses = {task: list(losses) for task, losses in self._losses.items()}
        return {"records": self.records, "losses": losses} | ({"skipped": self._skipped} if self._skipped else {})

    def baselines(self, errors: dict[str, float]) -> None:
        """Writes the training data's MSE of repeating the last frame, per task."""
        self._write({"step": 0, "baselines": errors})

    def step(self, step: int, losses: dict[str, float] | None, extra: dict[str, float]) -> None:
        """Notes the losses of the tasks in a step, None where it was skipped; of the values in `extra` the last are
        kept."""
        self._step = step
        self._extra = extra
        self._skipped += losses is None
        for task, loss in (losses or {}).items():
            self._losses.setdefault(task, []).append(loss)
        if step % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Writes the record of the steps since the last one, if any."""
        if not self._losses and not self._skipped:
            return
        means = {task: sum(values) / len(values) for task, values in sorted(self._losses.items())}
        skipped = {"skipped": self._skipped} if self._skipped else {}
        self._losses, self._skipped = {}, 0
        self._write({"step": self._step, "losses": means, **self._extra, **skipped})

    def validation(self, step: int, results: Results) -> None:
        """Writes held-out results as `values_of` returns them."""
        self.validated = step
        self._write({"step": step, "val": results})

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.records += 1
        self._show(record, time.time())

    def _replay(self, records: list[dict[str, Any]]) -> None:
        """Events of records that an earlier attempt wrote, as far apart in time as the training was."""
        seconds, start = 0.0, time.time() - max((record.get("seconds", 0.0) for record in records), default=0.0)
        for record in records:
            seconds = record.get("seconds", seconds)
            self._show(record, start + seconds)

    def _show(self, record: dict[str, Any], when: float) -> None:
        for tag, value in _scalars(record).items():
            self._board.add_scalar(tag, value, record["step"], walltime=when)


class NoLog:
    """In the place of a run's log, where another process keeps it."""

    def state_dict(self) -> None:
        """Nothing."""

    def step(self, step: int, losses: dict[str, float] | None, extra: dict[str, float]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def validation(self, step: int, results: Results) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """The values of a record by their names in TensorBoard."""
    scalars = {f"loss/{task}": loss for task, loss in record.get("losses", {}).items()}
    if "losses" in record:
        extra = ((name, value) for name, value in record.items() if name != "step" and isinstance(value, int | float))
        scalars |= {f"train/{name}": value for name, value in extra}
    for task, result in record.get("val", {}).items():
        scalars |= {f"val_{name}/{task}": value for name, value in result["model"].items() if value is not None}
    return scalars


def read_log(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """Records of a log.jsonl in order, up to the first line that is none: a crash cuts the last one short, a power cut
    leaves zeros. Empty where there is no file.

    whole: a line that is no record raises ValueError naming it, unless it is a last one that was cut short.
    """
    records = []
    if kind(path) == "nothing":
        return records
    with open_file(path) as file:
        while line := file.readline(MAX_LINE):
            try:
                record = json.loads(line)
                _RECORD.validate_python(record)
            except (ValueError, RecursionError, ValidationError):
                if (whole and line.endswith(b"\n")) or len(line) == MAX_LINE:
                    raise ValueError(f"{path}: line {len(records) + 1} is no record of a run") from None
                break
            records.append(record)
    return records


def records_until(path: Path, step: int) -> dict[str, Any]:
    """`RunLog.state_dict` of a run whose checkpoint, of an earlier release, holds the step and nothing of the log."""
    return {"records": sum(record["step"] <= step for record in read_log(path)), "losses": {}}
