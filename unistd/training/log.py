"""What a run writes down while it trains: log.jsonl (one record a line) and TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from unistd.training.checkpoint import write_atomically
from unistd.training.run import Run


class RunLog:
    """Averages the steps' losses and writes a record every `every` steps.

    A record is {"step", "losses": {task: mean MSE}, and the values of `step`'s `extra`}; before the first step
    {"step": 0, "baselines": {task: MSE of repeating the last frame}}; after an epoch {"step", "val": results}.

    Args:
        first_step: records of an earlier attempt at or after this step are dropped.
    """

    def __init__(self, run: Run, every: int, first_step: int = 0) -> None:
        kept = [record for record in read_log(run.log) if record["step"] <= first_step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(run.log, lambda file: file.write_text(lines))
        self._file = run.log.open("a")
        self._board = SummaryWriter(run.tensorboard, purge_step=first_step)
        self._every = every
        self._losses: dict[str, list[float]] = {}
        self._extra: dict[str, float] = {}
        self._step = first_step

    def baselines(self, errors: dict[str, float]) -> None:
        """Writes the training data's MSE of repeating the last frame, per task."""
        self._write({"step": 0, "baselines": errors})

    def step(self, step: int, losses: dict[str, float], extra: dict[str, float]) -> None:
        """Notes the losses of the tasks in a step; `extra` holds values of which the last one is kept."""
        self._step = step
        self._extra = extra
        for task, loss in losses.items():
            self._losses.setdefault(task, []).append(loss)
        if step % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Writes the record of the steps since the last one, if any."""
        if not self._losses:
            return
        means = {task: sum(values) / len(values) for task, values in sorted(self._losses.items())}
        self._losses = {}
        self._write({"step": self._step, "losses": means, **self._extra})
        for task, mean in means.items():
            self._board.add_scalar(f"loss/{task}", mean, self._step)
        for name, value in self._extra.items():
            self._board.add_scalar(f"train/{name}", value, self._step)

    def validation(self, step: int, results: dict[str, dict[str, dict[str, float]]]) -> None:
        """Writes held-out results as `evaluate` returns them."""
        self._write({"step": step, "val": results})
        for task, result in results.items():
            for name, value in result["model"].items():
                self._board.add_scalar(f"val_{name}/{task}", value, step)

    def close(self) -> None:
        """Writes what is left and closes the files."""
        self.flush()
        self._file.close()
        self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log.jsonl in order; a last line that a crash cut short is left out. Empty where there is no file."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
