"""Ctrl-C and the other signals that ask a process to end, for the whole of a command: one line, never a traceback."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from unistd.messages import cut, printable

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # USR1: of SLURM, before a limit of time


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end."""


class Interrupts:
    """Inside `with`, a signal of STOPS raises Interrupted and is kept as `signum`; a second one ends the process at
    once. While `raises` is false, the first one does: an exception in the middle of an import may get lost.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.raises = False

    @property
    def name(self) -> str:
        """Of the signal that came."""
        return signal.Signals(self.signum).name

    def __enter__(self) -> Interrupts:
        self._process, self._hook = os.getpid(), sys.unraisablehook
        self._before = {number: signal.signal(number, self._answer) for number in stops()}
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            atexit.register(ignore_stops)  # a Ctrl-C while Python is winding up

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked, and not yet a program of its own
            return
        again = self.signum is not None
        self.signum = signum
        if again or not self.raises:
            self._end()
        raise Interrupted

    def _unraisable(self, caught: Any) -> None:
        """An exception that Python has to drop, as it came while an object was deleted, is Interrupted all the same."""
        if isinstance(caught.exc_value, Interrupted):
            self._end()
        self._hook(caught)

    def _end(self) -> None:
        say(f"stopped by {self.name}")
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # the cursor, which a progress bar hides
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
        os._exit(128 + self.signum)


def stops() -> list[signal.Signals]:
    """STOPS without what `nohup` has turned off; none in a thread, where no handler can be set."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in STOPS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def say(message: str) -> None:
    """One line of `message` on standard error, if that takes it."""
    with suppress(OSError):
        print(f"unistd: {cut(printable(message), 900)}", file=sys.stderr, flush=True)


def ignore_stops() -> None:
    """From now on this process answers none of STOPS."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
