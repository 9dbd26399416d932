"""The processes of a job watch each other: one that is gone ends the job within a minute, and one line says which.

They meet at the store that the starting program (`torchrun` or `unistd.launch`) keeps. Each counts up a number there
every second. A process whose number stands still is gone, whatever became of it. Why a job ends is said once, by the
process that is the first to write it into the store.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from unistd.interrupts import say
from unistd.training.processes import Processes

BEAT = 1.0  # seconds from one sign of life to the next
STANDSTILL = 30.0  # seconds without one after which a process counts as gone
ROLL_CALL = 5.0  # the same once something is known to have gone wrong
_LEFT = b"left"


class Watch:
    """Inside `with`, this process shows that it lives, and ends with a line where another one does so no more, or where
    the store is gone.

    Args:
        processes: this process among the others, started by `torchrun` or `unistd.launch`.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._store, self._beats = _connect(), _connect()  # a thread each: a call holds its connection
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def blame(self, line: str) -> bool:
        """Whether this process is the first to say why the job ends, which is to be printed then."""
        try:
            mine = f"{self.processes.rank}: {line}"
            return self._store.compare_set("why", "", mine).decode() == mine
        except RuntimeError:  # the store is gone, and with it the program that started this
            return self.processes.first

    def missing(self) -> list[int]:
        """Which processes are gone, after a wait; none where another process has said why the job ends meanwhile."""
        others = [rank for rank in range(self.processes.world) if rank != self.processes.rank]
        try:
            before, last = self._signs(others), time.monotonic() + ROLL_CALL
            while time.monotonic() < last:
                time.sleep(BEAT / 4)
                if self.said:
                    return []
            after = self._signs(others)
        except RuntimeError:  # the store is gone: the thread notices too
            self._thread.join(STANDSTILL)
            return []
        return [rank for rank in others if after[rank] == before[rank] and after[rank] != _LEFT]

    @property
    def said(self) -> bool:
        """Whether a process has said why the job ends."""
        return self._store.check(["why"])

    def _signs(self, ranks: Iterable[int]) -> dict[int, bytes]:
        return {rank: self._store.get(str(rank)) if self._store.check([str(rank)]) else b"" for rank in ranks}

    def _run(self) -> None:
        mine, next_one = str(self.processes.rank), str((self.processes.rank + 1) % self.processes.world)
        seen, since, beats = b"", time.monotonic(), 0
        try:
            while not self._leaving.wait(BEAT):
                beats += 1
                self._beats.set(mine, str(beats))
                sign = self._beats.get(next_one) if self._beats.check([next_one]) else b""
                if sign not in (seen, b"", _LEFT):
                    seen, since = sign, time.monotonic()
                elif seen and sign != _LEFT and time.monotonic() - since > STANDSTILL:
                    self._end(f"process {next_one} of {self.processes.world} shows no sign of life any more")
            self._beats.set(mine, _LEFT)
        except RuntimeError:
            if not self._leaving.is_set():
                self._end("the program that started the processes of this job is gone")

    def _end(self, reason: str) -> None:
        if self.blame(reason):
            say(f"error: {reason}; `--resume` continues")
        os._exit(1)


def gone(ranks: list[int], world: int) -> str:
    """Processes that are gone, in words."""
    names = ", ".join(map(str, ranks))
    return f"{'process' if len(ranks) == 1 else 'processes'} {names} of {world} (counted from 0) ended without a word"


def _connect() -> PrefixStore:
    """The store that this attempt of the job shares. Raises RuntimeError where nobody keeps it."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=STANDSTILL))
    return PrefixStore(f"unistd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
