"""What somebody got wrong, tried in a process of its own: that it is refused in one line, soon, and in little memory.

The processes are forked from one that has the slow imports done and has computed nothing (a fork after the first
parallel loop hangs), so that a case costs its own work alone.
"""

import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

SECONDS = 10
MEMORY = 1 << 30
_CEILING = 6 << 30  # of what a case may ask for before the system says no: a defect must not take the machine along


@dataclass(frozen=True)
class Outcome:
    """How a try ended, and what it printed. status: None past the limit, negative for the signal that ended it."""

    status: int | None
    output: str
    errors: str
    seconds: float
    memory: int  # bytes, the most that was resident


def run_command(*arguments: object) -> Outcome:
    """`unistd` with these arguments."""
    return attempt(_command, [str(word) for word in arguments])


def attempt(function: Callable, *arguments: object) -> Outcome:
    """``function(*arguments)``, both of which can be pickled. A ValueError, TypeError or OSError counts as a refusal:
    status 1, its message as the one line of errors; anything else that is raised is a traceback and status 2."""
    return Try(function, *arguments).finish(SECONDS + 20)


class Try:
    """A process that runs ``function(*arguments)`` as `attempt` says, the head of a process group of its own."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self._folder = TemporaryDirectory()
        self._process = _forks().Process(target=_child, args=(Path(self._folder.name), function, arguments))
        self._begin = time.monotonic()
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send(self, signum: int, group: bool = False) -> bool:
        """Sends it a signal, or all processes of its group, as a terminal does; whether it was there to receive it."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signum)
            return True
        return False

    def finish(self, seconds: float) -> Outcome:
        """Waits for the end, but no longer than that; then kills it."""
        self._process.join(seconds)
        late = self.running
        if late:
            self._process.kill()
            self._process.join()
        seconds = time.monotonic() - self._begin
        texts = [
            file.read_text("utf-8", "replace") if file.exists() else "" for file in _files(Path(self._folder.name))
        ]
        self._folder.cleanup()
        return Outcome(None if late else self._process.exitcode, texts[0], texts[1], seconds, int(texts[2] or 0))


def start(function: Callable, *arguments: object) -> BaseProcess:
    """``function(*arguments)`` in a process of its own, which is running then: to be killed and joined."""
    process = _forks().Process(target=function, args=arguments)
    process.start()
    return process


def assert_refused(outcome: Outcome, *culprits: str) -> None:
    """Status 1 (2: a wrong command line) and one line of errors that has every one of `culprits` in it, in time and
    memory."""
    assert outcome.status in (1, 2), outcome
    line = outcome.errors.strip().removeprefix("unistd: error: ")
    assert "Traceback" not in outcome.errors, outcome.errors
    if outcome.status == 1:
        assert line, outcome
        assert "\n" not in line, outcome.errors
    for culprit in culprits:
        assert culprit in line, f"{culprit!r} is not in {line!r}"
    assert len(line) < 1000, f"{len(line)} characters: {line[:200]}"
    assert outcome.seconds < SECONDS, outcome
    assert outcome.memory < MEMORY, outcome


@cache
def _forks() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.refusal_imports"])
    with pytest.MonkeyPatch.context() as patch:  # the server has Python's own search path, and ignores what it misses
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    first = context.Process(target=os.getpid)  # waits for the imports, which are no case's own time
    first.start()
    first.join()
    return context


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in ("output", "errors", "memory")]


def _child(folder: Path, function: Callable, arguments: tuple) -> None:
    os.setsid()
    output, errors, memory = _files(folder)
    for stream, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, encoding="utf-8") for stream in (1, 2))
    resource.setrlimit(resource.RLIMIT_DATA, (_CEILING, _CEILING))
    status = 0
    try:
        result = function(*arguments)
        status = result if isinstance(result, int) else 0
    except (ValueError, TypeError, OSError) as error:
        print(error, file=sys.stderr)
        status = 1
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 2
    sys.stdout.flush(), sys.stderr.flush()
    memory.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    os._exit(status)


def _command(arguments: list[str]) -> int:
    from unistd.cli import main

    return main(arguments)
