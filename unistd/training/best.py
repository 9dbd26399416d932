"""The weights that validation found best: a safetensors file, with what says how to use them, and its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from fastmoe_lora._adapter_file import CHECKSUM, checksum
from unistd.files import require, write_atomically
from unistd.messages import first_line
from unistd.training.checkpoint import CheckpointError
from unistd.training.formats import FORMAT

KEYS = ("config", "step", "sources", "units")  # what of a training's state goes with its weights
_ABOUT = "unistd"


def save_best(path: Path, state: Mapping[str, Any]) -> None:
    """Writes "model" and `KEYS` of a training's state. Raises OSError naming `path`; what was there is whole then."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state["model"].items()}
    about = {"format": FORMAT} | {key: state[key] for key in KEYS}
    # one entry: the library writes several in any order, and the same state is to be the same bytes
    metadata = {_ABOUT: json.dumps({**about, CHECKSUM: _digest(about, tensors)})}

    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata)))


def load_best(path: Path) -> dict[str, Any]:
    """The weights ("model"), the `KEYS` that `save_best` wrote and "format", on the CPU, unchecked (see `state`).

    Raises CheckpointError where the file is missing or not what was written; OSError where it is no file.
    """
    require(path, "a file", "nothing")
    if not path.exists():
        raise CheckpointError(f"{path}: no checkpoint here")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if _ABOUT not in metadata:
                raise ValueError("it does not say what its weights are of")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata[_ABOUT])
        if about.pop(CHECKSUM) != _digest(about, tensors):
            raise ValueError("its bytes are not those that were written: their SHA-256 differs")
        return {"model": tensors, "format": about.get("format", FORMAT)} | {key: about[key] for key in KEYS}
    except Exception as error:  # what the readers raise depends on where the bytes went wrong
        raise CheckpointError(f"{path}: damaged checkpoint ({first_line(error)})") from None


def _digest(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{json.dumps(about)}\n{checksum(tensors)}".encode()).hexdigest()
