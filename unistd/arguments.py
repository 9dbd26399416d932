"""What the commands' grammars share: types of arguments, which say what was expected, and the form of the help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from unistd.tasks.spec import nearest


class Help(argparse.HelpFormatter):
    """Leaves a text of several lines, as examples are, as it stands, and fills the others."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def described(text: str | None, *examples: str) -> dict[str, Any]:
    """Arguments of a command's parser: what it does, and how it is called."""
    epilog = "\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples])
    return {"help": text, "description": text, "epilog": epilog, "formatter_class": Help, "allow_abbrev": False}


def whole_number(most: int) -> Callable[[str], int]:
    """A whole number from 1 to `most`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text[: len(str(most)) + 1]) <= most):
            raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most}, found {text[:60]!r}")
        return int(text)

    return read


def share(text: str) -> float:
    """A number from 0.01 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0.01 to 1, found {text[:60]!r}")
    return value


def check_task(task: str, tasks: Iterable[str]) -> None:
    """Raises ValueError where a run does not have the task."""
    if task not in (known := list(tasks)):
        raise ValueError(f"unknown task {task!r}{nearest(task, known)}")
