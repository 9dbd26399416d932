"""The form of a checkpoint: a number in it, which grows when an earlier release could not read it rightly any more.

What a release wrote, every later one opens: `tests/fixtures` holds a run of each form. A change that the readers cannot
tell from the keys alone gets the next number, and a function here that makes the former form into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unistd.messages import shown
from unistd.training.checkpoint import CheckpointError

FORMAT = 1  # also of the files that were written before there was a number


def check_format(state: Mapping[str, Any], source: Path) -> None:
    """Raises CheckpointError naming `source` where a later release wrote it, or its number is none."""
    number = state.get("format", FORMAT)
    if type(number) is not int or number < 1:
        raise CheckpointError(f"{source}: damaged checkpoint, 'format': expected a whole number, found {shown(number)}")
    if number > FORMAT:
        raise CheckpointError(
            f"{source}: a checkpoint of form {number}, of a later release; this one reads forms up to {FORMAT}"
        )
