"""Batches from other processes: their errors are one line, their deaths are noticed, and none is left behind."""

import multiprocessing
import os
import signal
import time
from contextlib import closing

import pytest
import torch
from torch.utils.data import Dataset

from unistd.tasks import DataFileError
from unistd.training.loading import Loader, WorkerError


class Numbers(Dataset):
    """0.0, 1.0, ...; at `odd`, `act` is called first."""

    def __init__(self, act=None, odd=5, length=16):
        self.act, self.odd, self.length = act, odd, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.odd and self.act is not None:
            self.act()
        return torch.tensor(float(index))


def unreadable():
    raise DataFileError("digits.h5: row 5 holds -1,\nexpected counts >= 0")


def io_error():
    raise OSError(5, "Input/output error", "frames.npy")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def left_alone():
    os._exit(3)


def defect():
    raise KeyError("a defect of ours")


def asleep():
    time.sleep(1000)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    assert multiprocessing.active_children() == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    if handler is not signal.SIG_DFL:  # torch sets its own at the first use
        assert signal.getsignal(signal.SIGCHLD) is handler


def batches(act=None, workers=1, **options):
    return list(Loader(Numbers(act), workers, batch_size=4, **options))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_in_order_each_time(workers):
    loader = Loader(Numbers(), workers, batch_size=4)
    assert len(loader) == 4
    for _ in range(2):
        assert torch.equal(torch.stack(list(loader)), torch.arange(16.0).reshape(4, 4))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_sample_that_cannot_be_read_is_its_own_error(workers):
    with pytest.raises(DataFileError) as error:
        batches(unreadable, workers)
    assert str(error.value) == "digits.h5: row 5 holds -1,\nexpected counts >= 0"
    with pytest.raises(DataFileError, match=r"^\[Errno 5\] Input/output error: 'frames.npy'$"):
        batches(io_error, workers)


def test_a_defect_keeps_its_traceback():
    with pytest.raises(KeyError, match=r"in DataLoader worker process 0[\s\S]*in defect"):
        batches(defect)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_named_with_its_signal(workers):
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker \(pid \d+\) was killed by signal 9, SIGKILL \(.*memory"):
        batches(killed, workers)
    assert time.monotonic() - begin < 8
    with pytest.raises(WorkerError, match=r"^a data loading worker \(pid \d+\) ended with exit status 3$"):
        batches(left_alone, workers)


def test_a_worker_that_dies_between_two_batches_interrupts_nothing_else():
    with closing(iter(Loader(Numbers(), 1, batch_size=4))) as left:
        next(left)
        multiprocessing.active_children()[0].kill()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:  # torch's own handler would raise here
            pass
        with pytest.raises(WorkerError):
            list(left)


def test_a_loader_within_another_leaves_it_in_charge():
    with closing(iter(Loader(Numbers(), 1, batch_size=4))) as outer:
        first = next(outer)
        with pytest.raises(WorkerError):
            batches(killed)
        assert torch.equal(torch.cat([first, *outer]), torch.arange(16.0))


def test_a_worker_that_is_busy_ends_with_its_loader():
    begin = time.monotonic()
    with closing(iter(Loader(Numbers(asleep), 2, batch_size=4))) as left:
        next(left)
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_leave_signals_to_the_process_they_work_for(signum):
    with closing(iter(Loader(Numbers(), 2, batch_size=4))) as left:
        first = next(left)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signum)
        assert torch.equal(torch.cat([first, *left]), torch.arange(16.0))
