"""Training runs that are killed at a place of one's choice, and what they leave, to be compared file by file."""

import importlib
import io
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.refusal import Try
from support.tiny_run import tiny_config
from unistd.training.checkpoint import load_checkpoint
from unistd.training.settings import dump_config

KEPT = {"train.log_every": 3, "ranks.window_share": 1.0, "train.keep": 3, "train.patience": 2}
NAME = "run"  # of the folder that a run writes, in a folder of its own
TIMES = {"seconds", "samples_per_second", "waiting"}  # what two runs may differ in


@dataclass(frozen=True)
class Kill:
    """A signal that a process sends itself at the `call`-th call of `function` ("module:name.of.it").

    of: counts only calls that have this in their arguments; after: once the call is done; torn: what the call writes is
    there by half; worker: the signal goes to the youngest of its loading processes instead.
    """

    function: str
    call: int = 1
    of: str = ""
    after: bool = False
    torn: bool = False
    signum: int = signal.SIGKILL
    worker: bool = False

    def __str__(self) -> str:
        when = "half-way" if self.torn else "after" if self.after else "before"
        name = self.function.rpartition(":")[2] + (f"({self.of})" if self.of else "")
        return f"{signal.Signals(self.signum).name} {when} {name} {self.call}"

    def arm(self) -> None:
        """Puts it in place in this process."""
        module, _, name = self.function.partition(":")
        holder: Any = importlib.import_module(module)
        *path, name = name.split(".")
        for part in path:
            holder = getattr(holder, part)
        original, calls = getattr(holder, name), 0

        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            counts = not self.of or any(self.of in str(word) for word in arguments)
            calls += counts
            if not counts or calls != self.call:
                return original(*arguments, **options)
            if self.torn:
                _TORN[name](original, *arguments)
            result = original(*arguments, **options) if self.after else None
            pid = max(child.pid for child in multiprocessing.active_children()) if self.worker else os.getpid()
            os.kill(pid, self.signum)  # one that is answered later lets the call be done
            if self.worker:  # is noticed where it has died before the next batch is asked for
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            return result if self.after else original(*arguments, **options)

        setattr(holder, name, counting)


def _half_a_file(save: Callable, state: object, file: BinaryIO) -> None:
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()


def _half_a_record(write: Callable, log: Any, record: object) -> None:
    text = json.dumps(record)
    log._file.write(text[: len(text) // 2])
    log._file.flush()


_TORN = {"save": _half_a_file, "_write": _half_a_record}


def new_run(folder: Path, changes: dict[str, object] | None = None) -> Path:
    """A folder with the config of a tiny run whose records cover three steps each, and whose rank window is still wide
    when its ranks are frozen."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(dump_config(tiny_config(Path(NAME), KEPT | (changes or {}))))
    return folder


def start(folder: Path, *kills: Kill, words: str = "train --config tiny.yaml --resume") -> Try:
    """`unistd` in a folder that `new_run` made."""
    return Try(command, str(folder), words.split(), kills)


def command(folder: str, words: list[str], kills: Sequence[Kill] = ()) -> int:
    """What the process does that `start` starts."""
    from unistd.cli import main

    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not itself made by a fork server
    for kill in kills:
        kill.arm()
    return main(words)


def living(group: int, seconds: float = 10) -> list[int]:
    """Processes of a group that are still there so long after; a loading process looks for its master every 5 s."""
    end = time.monotonic() + seconds
    while True:
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
                pids += [int(stat.parent.name)] if int(its_group) == group and state not in "ZX" else []
        if not pids or time.monotonic() > end:
            return pids
        time.sleep(0.05)


def left(folder: Path) -> dict[str, object]:
    """All that is in the files of a run but times, by file."""
    run = folder / NAME
    files = {str(file.relative_to(run)): file for file in sorted(run.rglob("*")) if file.is_file()}
    found: dict[str, object] = {name: file.read_bytes() for name, file in files.items() if "tfevents" not in name}
    found["tensorboard"] = events(run / "tensorboard")
    found["log.jsonl"] = [_timeless(json.loads(line)) for line in files["log.jsonl"].read_text().splitlines()]
    found["report.html"] = re.sub(r">\d+ min \d+ s<", "><", files["report.html"].read_text())
    for name, file in files.items():
        if name.endswith(".pt") and not file.is_symlink():
            found[name] = _plain(_timeless(load_checkpoint(file)))
    found["checkpoints/last"] = os.readlink(run / "checkpoints" / "last")
    return found


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMES}


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, times left out, as TensorBoard reads them."""
    board = EventAccumulator(str(folder), {"scalars": 0})
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.removeprefix("train/") not in TIMES]
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags}


def _plain(state: Any) -> Any:
    """A state in which tensors are their bytes, so that == compares it."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state]
    if isinstance(state, torch.Tensor):
        return (state.dtype, tuple(state.shape), state.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state
