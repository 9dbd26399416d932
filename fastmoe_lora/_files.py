"""Files that others may have written: read within limits and refused in one line; ours are whole or not there."""

import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import _checks

LARGEST = 8 << 20  # bytes of a description or a header: room for thirty thousand layers


def folder(name: str, path: str | os.PathLike[str]) -> Path:
    """The argument ``name`` as the name of a folder. Raises TypeError or ValueError."""
    _checks.instance(name, path, (str, os.PathLike), "a path")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name}: got {_checks.shown(text)}, expected the name of a folder")
    return Path(text)


def read_json(file: Path, what: str) -> Any:
    """The content of ``file``. OSError for what is not there; ValueError, that it is no ``what``, for what is no JSON,
    with a key twice in an object, or with numbers that JSON does not have."""
    check_regular(file, LARGEST, what)
    try:
        text = file.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # no JSON or UTF-8, or a whole number of thousands of digits
        raise ValueError(f"{_checks.path(file)}: not {what} ({first_line(error)})") from None


def check_regular(file: Path, most: int, what: str) -> None:
    """OSError for what is not there or a loop of links, ValueError for what is no file (a pipe would never end), or one
    of more than ``most`` bytes."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{_checks.path(file)}: got a folder, pipe, socket or device, expected a file")
    if found.st_size > most:
        raise ValueError(f"{_checks.path(file)}: got {found.st_size} bytes, expected at most {most} for {what}")


@contextmanager
def tensors(file: Path) -> Iterator[Any]:
    """The opened safetensors file; ValueError naming it if it turns out not to be whole."""
    from safetensors import SafetensorError, safe_open  # here, so that importing the package needs torch alone

    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{_checks.path(file)}: not a whole safetensors file ({first_line(error)})") from None


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files into ``folder``: beside the former ones and renamed, so that a crash leaves those whole; under names
    of this thread's own, as all processes of a data-parallel model may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}-{threading.get_ident()}"
    fresh = {folder / name: folder / f"{name}.{own}.new" for name in contents}
    try:
        for file, content in zip(fresh.values(), contents.values(), strict=True):
            file.unlink(missing_ok=True)
            file.write_bytes(content)
        for target, file in fresh.items():
            os.replace(file, target)
    except BaseException:
        for file in fresh.values():
            file.unlink(missing_ok=True)
        raise


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{_checks.shown(key)} is there twice")
        found[key] = value
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
