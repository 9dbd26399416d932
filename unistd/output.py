"""Standard output that may be closed, broken or full."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO


class OutputLost(Exception):
    """Standard output takes no more. `status`: the exit status of a command that ends for it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.signum = signal.SIGPIPE if isinstance(error, BrokenPipeError) else None
        self.status = 1 if self.signum is None else 128 + self.signum


class StandardOutput:
    """A text stream whose first failure is OutputLost; what follows is dropped, at the end of Python as well.

    A terminal that is gone is no failure: the signal that it sends (or not, under nohup) says what to do.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Writes what is no text, at once."""
        self.flush()
        self._try(self._stream.buffer.write, data)
        self.flush()

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self._terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if not self._terminal:
                raise OutputLost(error) from None


def open_standard_streams() -> None:
    """Opens what was closed of the three (`>&-`) on nothing: else the next file that is opened takes its number, and
    what a library says there is written into a checkpoint. What the encoding of the locale lacks is written escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a sign that its encoding lacks, or a name that is no text, ends nothing
            with suppress(OSError):  # where something else was put in the place of the stream's file since
                stream.reconfigure(errors="backslashreplace")
