"""Batches that other processes load: what goes wrong in one of them is one error here, and none outlives its use."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from unistd.tasks import DataFileError

# A terminal sends Ctrl-C to every process, a scheduler its SIGTERM to a whole group. Workers leave the answer to the
# process that they work for, which needs their batches until it has answered.
_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


class WorkerError(RuntimeError):
    """A loading process died. One line that names it and what it died of."""


@dataclass(frozen=True)
class _Failure:
    """In place of a sample or a batch: why there is none."""

    message: str


class _Carrying(Dataset):
    """A data set that returns its errors as samples: torch would turn an error of a worker into a page of text."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except (ValueError, OSError, MemoryError) as error:
            return _Failure(str(error) or f"sample {key}: {type(error).__name__}")


def _collate(collate: Callable[[Sequence[Any]], Any], samples: Sequence[Any]) -> Any:
    failures = [sample for sample in samples if isinstance(sample, _Failure)]
    return failures[0] if failures else collate(samples)


class Loader:
    """The batches of a data set, in order; iterate it as often as you like.

    Iteration raises DataFileError for a sample that cannot be read, and WorkerError where a worker dies. Close the
    iterator (`contextlib.closing`) where it is left early: its workers end there.

    Args:
        workers: processes that load; 0: this one does.
        collate: makes a batch of samples; by default torch's.
        options: which samples make a batch, in the words of torch's DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset,
        workers: int,
        collate: Callable[[Sequence[Any]], Any] = default_collate,
        **options: Any,
    ) -> None:
        self.dataset = dataset
        self._loader = DataLoader(
            _Carrying(dataset), num_workers=workers, collate_fn=partial(_collate, collate), **options
        )

    @property
    def batch_sampler(self) -> Any:
        """Which samples make a batch, as the options say."""
        return self._loader.batch_sampler

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in _watched(self._loader) if self._loader.num_workers else self._loader:
            if isinstance(batch, _Failure):
                raise DataFileError(batch.message)
            yield batch


def _watched(loader: DataLoader) -> Iterator[Any]:
    """Iterates a loader with workers. torch's own answer to a worker's death, an error in whatever line the process is
    at, would end a step or a file half-way; here it comes where a batch is waited for."""
    waiting = False

    def died(signum: int, frame: object) -> None:
        if waiting:
            _check(workers)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS | {signal.SIGCHLD})  # which the workers inherit
    try:
        with _held(_STOPS):
            iterator = iter(loader)
        workers: list[BaseProcess] = iterator._workers
        main = threading.current_thread() is threading.main_thread()  # the only one that handlers can be set in
        before = signal.signal(signal.SIGCHLD, died) if main else None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        while True:
            _check(workers)
            waiting = True
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (OSError, EOFError):  # of the pipe to a worker that was killed a moment ago
                _check_going(workers)
                raise
            except RuntimeError:
                _check(workers)
                raise
            finally:
                waiting = False
            yield batch
    finally:
        for worker in workers:
            worker.kill()  # one that is busy would end after its sample only
        iterator._shutdown_workers()
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


@contextmanager
def _held(signals: set[signal.Signals]) -> Iterator[None]:
    """Handlers run after this, not in it: a signal that another thread takes passes by the mask of this one, and an
    iterator of torch's that an exception has left half made complains as it is deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda signum, frame: came.append(signum)) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for signum in came:
            signal.raise_signal(signum)


def _check_going(workers: Sequence[BaseProcess], seconds: float = 10) -> None:
    """`_check` for workers one of which is on its way out; others may end meanwhile with nothing left to do."""
    last = time.monotonic() + seconds
    _check(workers)
    while (alive := [worker.sentinel for worker in workers if worker.exitcode is None]) and time.monotonic() < last:
        wait(alive, timeout=last - time.monotonic())
        _check(workers)


def _check(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        status = worker.exitcode
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            hint = " (the system does that where memory runs out: try fewer data.workers or data.cache=false)"
            raise WorkerError(
                f"a data loading worker (pid {worker.pid}) was killed by signal {-status}, {name}"
                f"{hint if -status in (signal.SIGKILL, signal.SIGBUS) else ''}"
            ) from None
        if status:
            raise WorkerError(f"a data loading worker (pid {worker.pid}) ended with exit status {status}") from None
