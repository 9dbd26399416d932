"""Ctrl-C and its like as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from unistd.interrupts import stops
from unistd.output import OutputLost
from unistd.training.processes import ALONE, Processes

_LOST = 1 << 20  # above all signals


class Stopped(Exception):
    """Training was stopped and has saved its checkpoint. signum: by this signal; None: since its output was lost."""

    def __init__(self, signum: int | None, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class StopRequested(Exception):
    """Raised where a loop may stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


class StopRequest:
    """Inside `with`, the signals that stop a command (`interrupts.STOPS`) set `signum` instead of ending the process; a
    second one has the answer that it had before, at the least KeyboardInterrupt. Of several `processes` all stop where
    one is asked to."""

    signum: int | None = None
    lost: OutputLost | None = None  # of the first process, which alone has an output

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes = processes

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in stops()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises StopRequested if a signal came, to whichever process; OutputLost in the first one if it is that.

        All processes call this at the same places.
        """
        mine = _LOST if self.lost is not None else self.signum or 0
        reason = self.processes.largest(mine)
        if self.lost is not None:
            raise self.lost
        if reason:
            raise StopRequested(signal.SIGPIPE if reason == _LOST else reason)

    @contextmanager
    def noting_loss(self) -> Iterator[None]:
        """Inside `with`, OutputLost waits for the next check, where the others hear of it."""
        try:
            yield
        except OutputLost as lost:
            if self.processes.world == 1:
                raise
            self.lost = lost

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            before = self._before[signum]
            if callable(before):
                before(signum, frame)
            raise KeyboardInterrupt
        self.signum = signum
