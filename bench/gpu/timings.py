"""Timings of `bench.gpu.check`: the layer beside the frozen linear and its rivals, eager and as CUDA graphs."""

import statistics
import time
from collections.abc import Callable
from functools import cache, partial

import torch

from bench.gpu.correctness import DTYPE, prepare
from bench.gpu.log import DEVICE, Log
from bench.harness.problem import Problem, Weights
from bench.harness.timing import interleaved, paired_ratio
from bench.peers import PEERS

__all__ = ["host", "prepare", "rivals", "timings"]

TOKENS = (16384, 4096, 65536)
SECONDS = 1.5
# Whole layer over the frozen linear: what we want to reach.
TARGETS = {"forward": 1.20, "forward+backward": 1.30, "compacted forward": 1.12}
HOST_RIVALS = ("three-gemm", "hydralora")
RIVALS = ("three-gemm", "concat-k", "hydralora", "compile-max-autotune")


def qkv(tokens: int) -> Problem:
    return Problem("qkv", tokens, 768, 2304, S=3)


def proj(tokens: int) -> Problem:
    return Problem("proj", tokens, 768, 768, E=2)


@cache
def weights_of(problem: Problem) -> Weights:
    return problem.weights(DTYPE, DEVICE)


class Entrant:
    """A peer on one problem, its forward and its forward+backward as calls without arguments."""

    def __init__(self, name: str, problem: Problem, compact: bool = False):
        weights = weights_of(problem)
        peer = PEERS[name]
        self.model = peer(peer.problem(weights)).to(DEVICE)
        if compact:
            from fastmoe_lora import freeze_ranks

            with torch.no_grad():
                self.model.layer.rank.fill_(4.0)
            freeze_ranks(self.model)
        self.x = self.model.prepare(weights.x)
        self.input = self.x.clone().requires_grad_()
        self.leaves = [self.input, *(p for p in self.model.parameters() if p.requires_grad)]
        with torch.no_grad():
            parts = self.model(self.x)
        self.grads = list(weights.grad.split([part.shape[1] for part in parts], dim=1))

    def forward(self):
        with torch.no_grad():
            return self.model(self.x)

    def both(self):
        return torch.autograd.grad(self.model(self.input), self.leaves, self.grads)


def paired(functions: dict, over: str, seconds: float = SECONDS) -> dict:
    """Milliseconds of each and the ratio of the first to `over`: cold L2 eager, warm L2 as a CUDA graph.

    Our own has to run; a rival may fail.
    """
    found: dict = {"ok": True}
    for label, graphs in (("eager", False), ("graph", True)):
        samples, failed = interleaved(functions, DEVICE, seconds, graphs=graphs)
        first = next(iter(functions))
        for name, values in samples.items():
            found[f"{name} {label} ms"] = statistics.median(values)
        if first in samples and over in samples:
            found[f"ratio {label}"] = paired_ratio(samples[first], samples[over]).median
        found |= {f"{name} {label} failed": reason for name, reason in failed.items()}
        found["ok"] &= "triton" not in failed
    return found


def against_linear(tokens: int, what: str) -> dict:
    ours = Entrant("triton", qkv(tokens), compact=what.startswith("compacted"))
    linear = Entrant("linear", qkv(tokens))
    call = "both" if what == "forward+backward" else "forward"
    found = paired({"triton": getattr(ours, call), "linear": getattr(linear, call)}, "linear")
    return found | {"target": TARGETS[what]}


def host_time(function: Callable[[], object], calls: int = 150) -> float:
    """Microseconds of wall time that a call takes where the GPU has nothing else to do."""
    for _ in range(10):
        function()
    times = []
    for _ in range(calls):
        torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    torch.cuda.synchronize()
    return statistics.median(times) * 1e6


def memory() -> dict:
    """Bytes kept between forward and backward, over the frozen linear's: QKV, M = 16384."""
    kept = {}
    for name in ("triton", "linear", "hydralora"):
        entrant = Entrant(name, qkv(16384))
        entrant.both()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        outputs = entrant.model(entrant.input)
        kept[name] = torch.cuda.memory_allocated() - before
        del outputs
    x_bytes = 16384 * 768 * 2  # the input is the caller's: it is saved by every entrant, and counted for every one
    return {f"{name} over linear": (kept[name] + x_bytes) / (kept["linear"] + x_bytes) for name in kept} | {
        "target": 1.15
    }


def timings(log: Log, shard: int, shards: int) -> None:
    """The layer over the frozen linear, and memory."""
    for tokens in TOKENS:
        for what in TARGETS:
            log.item(f"QKV {what} M {tokens}", partial(against_linear, tokens, what))
    log.item("kept for backward, M 16384", memory)


def host(log: Log, shard: int, shards: int) -> None:
    """Host time of eager calls, which decides where the GPU is faster than what launches its kernels.

    A backward pass runs in a thread of the autograd engine unless it is told to run in the caller's, where Python
    finds its objects in the caches.
    """

    def times(tokens: int, call: str, threads: bool) -> dict:
        entrants = {name: Entrant(name, qkv(tokens)) for name in ("triton", "linear", *HOST_RIVALS)}
        with torch.autograd.set_multithreading_enabled(threads):
            return {f"{name} us": host_time(getattr(entrant, call)) for name, entrant in entrants.items()}

    for tokens in (256, 4096):
        log.item(f"forward, M {tokens}", partial(times, tokens, "forward", True))
        for threads, whose in ((True, "engine's"), (False, "caller's")):
            log.item(f"both passes, M {tokens}, {whose} thread", partial(times, tokens, "both", threads))


def rivals(log: Log, shard: int, shards: int) -> None:
    """The layer beside those that compute the same; the one that compiles for long comes last."""

    def beside(peer: str, problem: Problem, call: str) -> dict:
        ours, rival = Entrant("triton", problem), Entrant(peer, problem)
        found = paired({peer: getattr(rival, call), "triton": getattr(ours, call)}, "triton", 0.7)
        torch.compiler.reset()  # graphs of this shape would count against the next one's limit
        return {key: value for key, value in found.items() if "ms" not in key}

    for peer in RIVALS:
        for problem in (qkv(16384), proj(16384), qkv(4096), proj(4096)):
            for call in ("forward", "both") if PEERS[peer].trains else ("forward",):
                name = f"{peer} over ours, {call}, {problem.name} M {problem.M}"
                log.item(name, partial(beside, peer, problem, call), 80)
