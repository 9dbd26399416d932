"""Files that are read in a process of their own: what crashes there is one line here.

One such process serves all files of a kind of this one; it is started at the first need (a third of a second) and ends
with it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unistd.tasks.files import DataFileError

_BYTE = np.dtype(np.uint8)


class GuardedProcess:
    """The reading process, one for each process that asks.

    Args:
        program: what it runs; reads requests and writes answers as `hdf5_process` says.
        form: of the files that it reads, as messages call it.
    """

    def __init__(self, program: Path, form: str) -> None:
        self.program, self.form = program, form
        self.forget()
        os.register_at_fork(after_in_child=self.forget)  # a data worker has its own
        atexit.register(self.end)

    def forget(self) -> None:
        self._lock, self._process = threading.Lock(), None

    def ask(
        self, path: Path, request: dict, shape: tuple[int, ...] = (0,), dtype: np.dtype = _BYTE
    ) -> tuple[dict, np.ndarray]:
        """The answer to a request, and the array of `shape` and `dtype` that comes after it."""
        line = json.dumps({"path": os.path.abspath(path), **request}).encode() + b"\n"
        with self._lock:
            answer, content = self._exchange(path, line, shape, dtype)
        if "error" in answer:
            raise DataFileError(f"{path}: {answer['error']}")
        return answer, content

    def end(self) -> int | None:
        """Ends the process; its exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()

    def _exchange(self, path: Path, line: bytes, shape: tuple[int, ...], dtype: np.dtype) -> tuple[dict, np.ndarray]:
        # a process that has read other files may have been damaged by those: then once more, in a new one
        for fresh in (self._process is None, True):
            self._process = self._process or _start(self.program)
            try:
                self._process.stdin.write(line)
                self._process.stdin.flush()
                return _receive(path, self._process.stdout, shape, dtype)
            except (EOFError, BrokenPipeError):
                status = self.end()
                if fresh or status == -signal.SIGPROF:
                    raise DataFileError(f"{path}: {_ending(status, self.form)}") from None
            except BaseException:  # Ctrl-C between question and answer: the next question would get this one's
                self._process.kill()
                self.end()
                raise
        raise AssertionError("the second process was a fresh one")


def _receive(path: Path, stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> tuple[dict, np.ndarray]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer, content = json.loads(line), np.empty(shape, dtype)
    if "error" not in answer and answer["bytes"] != content.nbytes:
        raise DataFileError(f"{path}: {answer['bytes']} bytes of values, expected {content.nbytes} as it was opened")
    if "error" not in answer and stream.readinto(content.reshape(-1).view(_BYTE)) != content.nbytes:
        raise EOFError
    return answer, content


def _start(program: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),  # h5py from where this process would import it
        "HDF5_PLUGIN_PRELOAD": "::",  # no code is loaded because a file asks for a filter
        "OPENBLAS_NUM_THREADS": "1",
    }
    # -P: the program's folder is not searched for modules, ours would hide others there
    command = [sys.executable, "-P", str(program)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )


def _ending(status: int, form: str) -> str:
    if status == -signal.SIGPROF:
        return f"not a readable {form} file (reading it takes processor time without end)"
    cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"not a readable {form} file ({form}'s library ended with {cause} on it)"
