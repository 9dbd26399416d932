"""How everything here is timed: warmed, interleaved round by round, so that entrants can be compared in pairs."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import quantiles

import torch

MIN_SAMPLE_MS = 2.0  # a CPU sample repeats the call until it lasts this long, so that the clock's own cost is nothing
WARM_UP_CALLS = 2
COLD_BYTES = 128 << 20  # many times the second-level caches
LONG_CALL_MS = 300.0  # one warm-up call is enough for what takes this long: every entrant ran once to be checked


@dataclass(frozen=True)
class Quantiles:
    """Median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: list[float]) -> "Quantiles":
        """Linear interpolation between order statistics; a single sample stands for all three."""
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0])
        tenths = quantiles(samples, n=10, method="inclusive")
        return cls(tenths[4], tenths[1], tenths[7])


def paired_ratio(samples: list[float], others: list[float]) -> Quantiles:
    """Quantiles of samples[i] / others[i], both of round i: drift of the machine over the rounds cancels."""
    return Quantiles.of([a / b for a, b in zip(samples, others, strict=True)])


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 51,
    graphs: bool = False,
    cold: bool = False,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Times all functions in turn, in a new random order each round, until ``seconds`` are over.

    On a CPU a sample is the mean wall time of a few calls, or with ``cold`` of one before which `COLD_BYTES` of other
    memory are written, so that no entrant finds in the caches what another has left there; on a GPU the median of
    `triton.testing.do_bench`, which clears the L2 cache before each call, or with ``graphs`` that of
    `do_bench_cudagraph` (no launch cost).

    Returns (milliseconds of each round by name, reason by name of those that raised; these have no samples). At least
    ``min_rounds`` rounds are run whatever they take, at most ``max_rounds``.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    failures: dict[str, str] = {}
    calls: dict[str, int] = {}
    for name, function in functions.items():
        try:
            calls[name] = warm_up(function, device)
        except Exception as error:
            failures[name] = describe(error)
    order = [name for name in functions if name not in failures]
    shuffle = random.Random(0).shuffle
    end = time.perf_counter() + seconds
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(max_rounds):
            if not order or (done >= min_rounds and time.perf_counter() > end):
                break
            shuffle(order)
            for name in list(order):
                try:
                    if cold:
                        _empty_caches()
                    samples[name].append(sample(functions[name], device, 1 if cold else calls[name], graphs))
                except Exception as error:
                    failures[name] = describe(error)
                    order.remove(name)
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    return {name: values for name, values in samples.items() if name not in failures}, failures


@cache
def _other_memory() -> torch.Tensor:
    return torch.zeros(COLD_BYTES, dtype=torch.uint8)


def _empty_caches() -> None:
    _other_memory().add_(1)


def describe(error: BaseException) -> str:
    """One line for a table: the type and the first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def warm_up(function: Callable[[], object], device: torch.device) -> int:
    """Calls it once or twice; returns how many calls make up a sample."""
    for _ in range(WARM_UP_CALLS):
        start = time.perf_counter()
        function()
        elapsed = 1e3 * (time.perf_counter() - start)
        if elapsed > LONG_CALL_MS:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return 1
    return max(1, min(100, round(MIN_SAMPLE_MS / max(elapsed, 1e-3))))


def sample(function: Callable[[], object], device: torch.device, calls: int, graphs: bool = False) -> float:
    """Milliseconds of one call."""
    if device.type == "cuda":
        from triton.testing import do_bench, do_bench_cudagraph

        if graphs:
            return do_bench_cudagraph(function, rep=20, quantiles=[0.5])
        return do_bench(function, warmup=5, rep=20, quantiles=[0.5])
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return 1e3 * (time.perf_counter() - start) / calls
