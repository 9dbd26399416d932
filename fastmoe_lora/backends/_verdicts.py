"""Verdicts on plans, on disk for the processes to come: a small JSON file each, in the user's cache folder.

They hold for one kind of device, its driver, the versions of torch and Triton and this very source code. Whatever is
wrong with a file or with the folder, it counts as not there, and the plan is tried again.
"""

import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import astuple
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ._launch import HIP, device_name
from ._trial import Use

_LARGEST = 1 << 16  # bytes of a file that is read


def folder() -> Path:
    """``FASTMOE_LORA_CACHE_DIR``, else ``fastmoe_lora`` in ``XDG_CACHE_HOME``, else in ``~/.cache``.

    Raises RuntimeError where there is no home either.
    """
    given = os.environ.get("FASTMOE_LORA_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fastmoe_lora")


def read(use: Use) -> dict[str, str | None] | None:
    """{"fault": what is wrong, or None} as `write` was given it; None where that is not known."""
    with suppress(OSError, RuntimeError, ValueError):  # RuntimeError: nested too deeply, or no folder
        path = _path(use)
        if path.is_file():  # no pipe, which would be waited for
            with path.open("rb") as file:
                found = json.loads(file.read(_LARGEST))
            if isinstance(found, dict) and found.get("of") == _identity(use) and _is_fault(found.get("fault", 0)):
                return {"fault": found["fault"]}
    return None


def write(use: Use, fault: str | None) -> None:
    """Written beside and renamed, so that processes may do so at the same time."""
    with suppress(OSError, RuntimeError):
        path = _path(use)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"fault": fault, "of": _identity(use)}, indent=1)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _is_fault(value: object) -> bool:
    return value is None or isinstance(value, str)


def _path(use: Use) -> Path:
    text = json.dumps(_identity(use), sort_keys=True)
    return folder() / "self_check" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _identity(use: Use) -> dict[str, Any]:
    """What a verdict holds for, as JSON has it."""
    return _machine(use.device) | {
        "direction": use.direction,
        "dtype": str(use.dtype),
        "geometry": list(use.geometry),
        "plans": [list(astuple(plan)) for plan in use.plans],
        "wanted": list(use.wanted),
    }


@cache
def _machine(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "source": _source()}
    with suppress(PackageNotFoundError):
        found["triton"] = version("triton")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "multiprocessors": properties.multi_processor_count, "driver": _driver()}
    return found


def _driver() -> str:
    """Of the module in the kernel, where it says so; and the kernel, which AMD's comes with."""
    file = Path("/sys/module", "amdgpu" if HIP else "nvidia", "version")
    own = file.read_text("utf-8", "replace").strip() if file.is_file() else ""
    interface = getattr(torch._C, "_cuda_getDriverVersion", lambda: "")()
    return f"{own or platform.release()} {interface}"


@cache
def _source() -> str:
    """A hash of the backends and the kernels."""
    from ..kernels import triton as kernels

    digest = hashlib.sha256()
    for path in (Path(__file__).parent, *map(Path, kernels.__path__)):
        for file in sorted(path.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
