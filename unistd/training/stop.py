"""Ctrl-C and its like as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from unistd.interrupts import stops


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
    """Inside `with`, SIGINT, SIGTERM and SIGHUP set `signum` instead of ending the process; a second one has the answer
    that it had before, at the least KeyboardInterrupt."""

    signum: int | None = None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in stops()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises StopRequested if a signal came."""
        if self.signum is not None:
            raise StopRequested(self.signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            before = self._before[signum]
            if callable(before):
                before(signum, frame)
            raise KeyboardInterrupt
        self.signum = signum
