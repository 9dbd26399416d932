"""The queue and its flags under real concurrency: the programs of a launch are processes that run at the same time.

The interpreter alone runs them one after another: whoever reads too early would not be noticed. Its atomics are the
processor's, so they work between processes that share memory. Run by test_interpreter.py.
"""

import os
import random
import time
from dataclasses import replace

import pytest
import torch
from support.operator import Case, assert_right
from triton.runtime import interpreter

from fastmoe_lora.backends import _launch, _plan

PROGRAMS = 4
SECONDS = 60  # after which programs that wait count as waiting for ever
QUEUE = _plan.Plan("queue", bm=16, bn=16, bk=16, warps=4, stages=2, group=2)
CASE = Case(tokens=75, in_features=48, out_features=96, experts=6)


class Concurrent:
    """Makes each launch of a queued kernel PROGRAMS processes, the first of them slow, all late at random."""

    def __init__(self, alone):
        self.alone = alone  # Launcher.__call__
        self.launched = []

    def __call__(self, launcher, programs, types, *arguments):
        name = launcher.kernel.__name__
        if name not in ("forward", "grad_input"):
            return self.alone(launcher, programs, types, *arguments)
        for tensor in filter(torch.is_tensor, arguments):
            tensor.share_memory_()
        self.launched.append(name)
        children = [self._start(number, launcher, arguments) for number in range(PROGRAMS)]
        deadline = time.monotonic() + SECONDS
        failed = [child for child in children if not _succeeds(child, deadline)]
        assert not failed, f"{len(failed)} of {PROGRAMS} programs failed or waited for more than {SECONDS} seconds"

    def _start(self, number, launcher, arguments) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            _be_one_program(number)
            launcher.kernel[(1,)](*arguments, **launcher.named)
            status = 0
        finally:
            os._exit(status)


def _be_one_program(number: int) -> None:
    """From now on a launch in this process is one program of a launch of PROGRAMS."""
    builder, chance = interpreter.interpreter_builder, random.Random(number)
    builder.grid_dim = PROGRAMS, 1, 1
    builder.set_grid_dim = lambda *_: None
    interpreter.GridExecutor._restore_args_dev = lambda *_: None  # what is shared needs no copying back
    builder.create_atomic_rmw = _after(builder.create_atomic_rmw, lambda: chance.choice((0, 0, 0.003)))
    if number == 0:  # the first to claim: what it has to do for the others is done long after they could do without
        builder.create_masked_store = _after(builder.create_masked_store, lambda: 0.03)


def _after(call, seconds):
    def late(*arguments):
        time.sleep(seconds())
        return call(*arguments)

    return late


def _succeeds(child: int, deadline: float) -> bool:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)


@pytest.fixture
def poisoned():
    """Fresh tensors hold NaN: what is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("adapter_dtype", [torch.float16, torch.float32], ids=["", "masters"])
@pytest.mark.parametrize("merge", [False, True], ids=["", "merged"])
@pytest.mark.parametrize("case", [CASE, replace(CASE, compacted=True)], ids=["", "compacted"])
def test_programs_of_one_launch_run_side_by_side(case, merge, adapter_dtype, monkeypatch, poisoned):
    plan = replace(QUEUE, merge=merge)
    monkeypatch.setattr(_plan, "choose", lambda kind, device, geometry, tokens: _plan.fit(kind, plan, geometry))
    concurrent = Concurrent(_launch.Launcher.__call__)
    monkeypatch.setattr(_launch.Launcher, "__call__", lambda *arguments: concurrent(*arguments))
    assert_right(case, "triton", torch.float16, adapter_dtype=adapter_dtype)
    assert concurrent.launched == ["forward", "grad_input"]
