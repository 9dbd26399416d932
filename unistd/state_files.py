"""Files of weights that others saved: read as tensors alone, no code in them is run, nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unistd.archives import check_archive
from unistd.files import kind, open_file
from unistd.messages import cut, shown

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_state(path: str | Path, key: str, part: str = "") -> dict[str, Tensor]:
    """The tensors of a file by name, without the "module." of a wrapped model.

    Args:
        path: .safetensors, or as `torch.save` writes it (a state dict, or a checkpoint that holds one under
            "state_dict" or "model"), read with weights_only=True.
        key: what the file was given as, for the message that it is not there.
        part: of a .safetensors file that has names with this beginning, only these are read.

    Raises:
        FileNotFoundError: no such file, or a folder, a pipe or the like.
        ValueError: the file cannot be read, is damaged, or holds no state dict.
    """
    path = Path(path)
    if (found := kind(path)) != "a file":
        what = f"no such file {path}" if found == "nothing" else f"{path}: expected a file, found {found}"
        raise FileNotFoundError(f"{key}: {what}")
    try:
        state = _read_safetensors(path, part) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # what the readers raise depends on where the bytes went wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read as weights ({cut(reason, 200)})") from None
    for inner in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(inner), Mapping):
            state = state[inner]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a state dict, found {type(state).__name__}")
    return {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}


def load_state(network: nn.Module, path: str | Path, key: str, spare: tuple[str, ...] = ()) -> None:
    """Loads a file into a network that has the file's names, and freezes it in evaluation mode.

    Args:
        spare: beginnings or ends of names that the file may have or lack, and that nothing is read from.

    Raises:
        FileNotFoundError, ValueError: as `read_state`; and naming the first tensor that lacks, has no place, has
            another shape, or is not of finite numbers.
    """

    def counts(name: str) -> bool:
        return not (name.startswith(spare) or name.endswith(spare))

    state, expected = read_state(path, key), network.state_dict()
    expected = {name: value for name, value in expected.items() if counts(name)}
    for name, value in expected.items():
        found = state.get(name)
        if found is None:
            raise ValueError(f"{key}: {path}: has no {name!r}, expected the state dict of {type(network).__name__}")
        if found.shape != value.shape:
            raise ValueError(f"{key}: {path}: {name!r} is {tuple(found.shape)}, expected {tuple(value.shape)}")
        if value.is_floating_point() and not (found.is_floating_point() and found.isfinite().all()):
            raise ValueError(f"{key}: {path}: {name!r} holds NaN, Inf or no floating-point numbers")
    if (name := next((name for name in state if name not in expected and counts(name)), None)) is not None:
        raise ValueError(f"{key}: {path}: {shown(name)} has no place in {type(network).__name__}")
    network.load_state_dict({name: state[name] for name in expected}, strict=False)  # all has been compared above
    network.eval().requires_grad_(False)


def _read_safetensors(path: Path, part: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        chosen = [name for name in names if part and name.startswith(part)]
        return {name: file.get_tensor(name) for name in chosen or names}


def _read_torch(path: Path) -> object:
    with open_file(path) as file:
        check_archive(file)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
