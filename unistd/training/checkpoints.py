"""The checkpoints of a run: the last one, those before it, and the weights that validation found best."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistd.files import kind, open_file, write_atomically
from unistd.training.best import load_best
from unistd.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from unistd.training.run import Run

LINKS = {"last": "../checkpoint.pt", "best": "../best.safetensors"}  # in the folder of the checkpoints


def _earlier(run: Run, step: int) -> Path:
    return run.earlier / f"step_{step:08d}.pt"


def _all_earlier(run: Run) -> list[Path]:
    """Those before the last one, the oldest first."""
    return sorted(run.earlier.glob("step_*.pt"))


def read_last(run: Run, say: Callable[[str], None]) -> tuple[Path, Any]:
    """File and content of a run's last checkpoint that is whole, to go on from; `say` is told where one is damaged.

    Raises as `load_checkpoint` does of the last one, where none before it is whole either.
    """
    try:
        return run.checkpoint, load_checkpoint(run.checkpoint)
    except CheckpointError as damaged:
        for path in reversed(_all_earlier(run)):
            with suppress(CheckpointError, OSError):
                state = load_checkpoint(path)
                say(f"warning: {damaged}; the run goes on from the one before it, {path}")
                return path, state
        raise


def read_chosen(run: Run, which: str) -> tuple[Path, Any]:
    """File and content of a checkpoint of a run, as `--checkpoint` names it: "last", "best" (of the validations), or a
    file. What is `weights_alone` has no more than that.

    Raises CheckpointError where there is none, or it is damaged: a result would be of other weights than asked for.
    """
    path = {"last": run.checkpoint, "best": run.best}.get(which, Path(which))
    if which == "best" and not path.exists():
        raise CheckpointError(f"{path}: no best checkpoint: the run has had no validation (data.val_samples)")
    try:
        return path, load_best(path) if weights_alone(path) else load_checkpoint(path)
    except CheckpointError as damaged:
        if which != "last" or not (before := _all_earlier(run)) or not path.exists():
            raise
        raise CheckpointError(f"{damaged}; --checkpoint {before[-1]} is the one before it") from None


def weights_alone(path: Path) -> bool:
    """Whether a checkpoint holds the weights, and nothing to go on from; raises OSError where it is no file."""
    if path.suffix == ".safetensors" or kind(path) == "nothing":
        return path.suffix == ".safetensors"
    with open_file(path) as file:
        return file.read(9)[8:] == b"{"  # of a header, behind its length


@dataclass
class Checkpoints:
    """Those of a run that trains, of which the last `keep` are kept.

    What counts are the checkpoints that every run writes, however often it is stopped and goes on: one that was written
    for a stop is replaced by the next.

    Args:
        kept: steps of the checkpoints that are there, the oldest first.
        last: step of the one in `run.checkpoint`; None: there is none, or a damaged one.
    """

    run: Run
    keep: int
    kept: list[int]
    last: int | None = None

    def save(self, step: int, regular: bool, state: Mapping[str, Any]) -> None:
        """Writes the state after `step` steps, with "kept", as the last checkpoint. regular: not for a stop.

        Raises OSError naming the file that cannot be written; the checkpoints before are whole then.
        """
        self.run.earlier.mkdir(exist_ok=True)
        kept = [*self.kept, step][-self.keep :] if regular and step not in self.kept else self.kept
        if self.last in kept and self.last != step:
            write_atomically(_earlier(self.run, self.last), self._link)
        save_checkpoint(self.run.checkpoint, {**state, "kept": kept})
        self.kept, self.last = kept, step
        for name, target in LINKS.items():
            link = self.run.earlier / name
            with suppress(OSError):  # a file system without such links: nothing needs them
                if not link.is_symlink():  # a copy of the run has a file in its place
                    link.unlink(missing_ok=True)
                    link.symlink_to(target)
        self.remove_others()

    def remove_others(self) -> None:
        """Deletes those that are no longer kept; a run that was killed may have left one."""
        kept = {_earlier(self.run, step) for step in self.kept if step != self.last}
        for path in _all_earlier(self.run):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _link(self, temporary: Path) -> None:
        try:
            os.link(self.run.checkpoint, temporary)
        except OSError:  # a file system without such links, or no space, which the copy will say
            shutil.copyfile(self.run.checkpoint, temporary)
