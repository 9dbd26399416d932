"""Checkpoints: one file a run, replaced as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistd.model import UniSTD


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another architecture. One line, names the file."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a temporary file beside `path` and puts it in place; a crash leaves the old file whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain values) as a file that `load_checkpoint` reads without unpickling code."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU; raises CheckpointError where it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler raises depends on where the bytes went wrong
        raise CheckpointError(f"{path}: damaged checkpoint ({_first_line(error)})") from None


def load_weights(model: UniSTD, weights: dict[str, Tensor], source: Path) -> None:
    """Loads a model's state; raises CheckpointError naming the first thing that another architecture has otherwise."""
    try:
        model.load_state_dict(weights)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None


def random_state() -> dict[str, Any]:
    """State of the random generators that training draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Restores `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
