"""Lines for a person at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from unistd.messages import printable


def say(console: Console, text: str | Text) -> None:
    """Prints a line as it is: what looks like markup in the name of a folder is none."""
    console.print(text if isinstance(text, Text) else Text(printable(text)), soft_wrap=True, highlight=False)
