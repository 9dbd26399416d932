"""`unistd train --profile`: where the time of a training step goes, of a few steps of which nothing is kept.

Times are the host's, each phase by itself, in steps that nothing else watches: on a GPU that is the time to hand work
over, and the device is waited for under "synchronisation", once for all of them as a log record does it. The arithmetic
is counted in a step of its own, operator by operator, and further steps are traced by torch.profiler, which also knows
each phase's time on a GPU.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from unistd.files import write_atomically
from unistd.plan.watch import Watch
from unistd.training.compiling import uncompiled
from unistd.training.data import steps_of
from unistd.training.trainer import Trainer

PHASES = ("data", "encode", "trunk", "decode", "backward", "optimizer", "synchronisation")
WARM, TIMED, TRACED = 3, 10, 2  # steps; the first is that whose arithmetic is counted
_PEAK_SECONDS = 1.0  # in which the peak is measured
_FORMATS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Profile:
    """What some steps took.

    Attributes:
        steps: how many were timed.
        seconds: of one of them, on the mean.
        phases: seconds of each phase in it, of the host.
        device: the same of a GPU, in the steps that were traced; empty on a CPU.
        flops: floating-point operations of matrix products, convolutions and attention in a step, by phase, of this
            process; what checkpointing computes once more is not among them.
        samples, tokens: of a step, of all processes, on the mean.
        peak: FLOP/s that products of matrices reach here, of `size` rows and columns in the format that the model
            computes in.
        trace: what chrome://tracing and ui.perfetto.dev show.
    """

    steps: int
    seconds: float
    phases: dict[str, float]
    device: dict[str, float]
    flops: dict[str, float]
    samples: float
    tokens: float
    peak: float
    size: int
    format: str
    trace: Path

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation (MFU): the share of the peak that the step's arithmetic comes to."""
        return sum(self.flops.values()) / self.seconds / self.peak


class _Scopes:
    """Times named stretches of the host's work, and names them to torch.profiler and to a `Watch`."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.watch: Watch | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin, watch = time.perf_counter(), self.watch
        before = None if watch is None else watch.phase
        if watch is not None:
            watch.phase = name
        try:
            with record_function(name):
                yield
        finally:
            self.seconds[name] += time.perf_counter() - begin
            if watch is not None:
                watch.phase = before

    def around(self, name: str, function: Callable) -> Callable:
        """The function in a scope."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self(name):
                return function(*arguments, **options)

        return call

    def into(self, trainer: Trainer) -> None:
        """Puts a trainer's phases into scopes. What is compiled stays as it is compiled: the scopes are around it."""
        model = trainer.model.module
        parts: list[tuple[str, nn.Module]] = [("encode", encoder) for encoder in model.encoders.values()]
        parts += [("trunk", model.trunk), *(("decode", decoder) for decoder in model.decoders.values())]
        for name, part in parts:
            part._compiled_call_impl = self.around(name, part._compiled_call_impl or part._call_impl)
        trainer.fabric.backward = self.around("backward", trainer.fabric.backward)
        trainer.update = self.around("optimizer", trainer.update)


def profile_steps(trainer: Trainer, trace: Path) -> Profile:
    """Takes some steps of a trainer that has taken none, and writes the trace; all processes call this.

    Raises ValueError where its run has too few steps, OSError where the trace cannot be written.
    """
    if trainer.steps <= WARM + TRACED:
        raise ValueError(f"--profile: the run has {trainer.steps} steps, expected at least {WARM + TRACED + 1}")
    timed = min(TIMED, trainer.steps - WARM - TRACED)
    scopes, train = _Scopes(), trainer.config.train
    scopes.into(trainer)
    trainer.model.train()
    with closing(trainer.passes()) as passes:
        steps = steps_of(passes, train.accumulate)

        def take(count: int) -> float:
            """Takes steps, and waits for the device; returns the seconds of one."""
            begin = time.perf_counter()
            for _ in range(count):
                with scopes("data"):
                    mine, _ = next(steps)
                trainer._train_step(mine)
            with scopes("synchronisation"):
                trainer.account.steps.read()
            return (time.perf_counter() - begin) / count

        with uncompiled(train):
            flops = _counted(scopes, lambda: take(1), trainer)
        take(WARM - 1)
        scopes.seconds.clear()
        first = trainer.step
        seconds = take(timed)
        phases = {name: scopes.seconds[name] / timed for name in PHASES}
        samples, tokens = _sizes(trainer, range(first, first + timed))
        device = _traced(lambda: take(TRACED), trainer, trace)
    peak, size = _peak(_FORMATS[train.precision], trainer.fabric.device)
    found = (samples / timed, tokens / timed, peak, size, str(_FORMATS[train.precision]).removeprefix("torch."))
    return Profile(timed, seconds, phases, device, flops, *found, trace)


def _counted(scopes: _Scopes, take: Callable[[], object], trainer: Trainer) -> dict[str, float]:
    """Floating-point operations of a step, by phase."""
    scopes.watch = watch = Watch()
    watch.begin("other")
    with watch:
        take()
    scopes.watch = None
    flops: Counter[str] = Counter()
    for phase, _, count, _ in watch.operators:
        flops[phase] += count
    if trainer.config.model.checkpointing:
        flops["backward"] -= flops["trunk"]
    return {phase: float(count) for phase, count in flops.items() if count}


def _traced(take: Callable[[], object], trainer: Trainer, trace: Path) -> dict[str, float]:
    """Writes the trace of some steps; returns each phase's seconds on a GPU in one of them."""
    on_gpu = trainer.fabric.device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would say on standard error that it starts and stops
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        take()
    if trainer.processes.first:
        write_atomically(trace, lambda temporary: found.export_chrome_trace(str(temporary)))
    if not on_gpu:
        return {}
    times = {event.key: event.device_time_total for event in found.key_averages()}  # in microseconds
    return {name: times.get(name, 0.0) / 1e6 / TRACED for name in PHASES}


def _sizes(trainer: Trainer, steps: range) -> tuple[int, int]:
    """Samples and tokens of some steps, of all processes."""
    sampler = trainer.loader.batch_sampler.sampler
    tasks = Counter(task for step in steps for task, _ in sampler.batch(step))
    return tasks.total(), sum(count * trainer.specs[task].tokens for task, count in tasks.items())


def _peak(dtype: torch.dtype, device: torch.device) -> tuple[float, int]:
    """FLOP/s of the fastest of some products of square matrices, and their rows."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = nullcontext if device.type == "cpu" else torch.accelerator.synchronize
    fastest, end = float("inf"), time.perf_counter() + _PEAK_SECONDS
    left @ right
    while time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        left @ right
        wait()
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * size**3 / fastest, size


def show(found: Profile, console: Console) -> None:
    """Prints a profile."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    columns = ("ms", "share", *(["GPU ms"] if found.device else []), "GFLOP")
    for column in ("phase", *columns):
        table.add_column(column, justify="left" if column == "phase" else "right")
    rest = {"other": max(0.0, found.seconds - sum(found.phases.values()))}
    for name, seconds in (found.phases | rest).items():
        device = [f"{1e3 * found.device.get(name, 0.0):.2f}"] if found.device else []
        flops = found.flops.get(name, 0.0)
        shown = f"{flops / 1e9:.3g}" if flops else "-"
        table.add_row(name, f"{1e3 * seconds:.2f}", f"{seconds / found.seconds:.1%}", *device, shown)
    console.print(table)
    total = sum(found.flops.values())
    for line in (
        f"a step: {1e3 * found.seconds:.2f} ms (mean of {found.steps}), {found.samples / found.seconds:,.1f} samples/s,"
        f" {found.tokens / found.seconds:,.0f} tokens/s",
        f"MFU {found.utilisation:.1%}: {total / 1e9:,.3g} GFLOP a step, {total / found.seconds / 1e9:,.3g} GFLOP/s, of"
        f" {found.peak / 1e9:,.4g} that products of {found.size} x {found.size} in {found.format} reach here",
        f"trace: {found.trace} (for ui.perfetto.dev or chrome://tracing)",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
