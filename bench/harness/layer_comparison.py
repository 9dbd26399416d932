"""One comparison of layers: every entrant built on the same weights, checked, then all timed in the same rounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.harness import options
from bench.harness.collect import collect
from bench.harness.problem import Problem, Weights, results, worst_error
from bench.harness.record import FAILED, MEASURED, UNAVAILABLE, WRONG, Entry, Group, Record
from bench.harness.timing import describe, interleaved
from bench.peers import PEERS, Peer

SIZES = {"cpu": ["qkv", "qkv-1-image", "proj"], "cuda": ["qkv", "qkv-1-image", "proj", "qkv-1024", "llm"]}


def run(name: str, arguments: list[str], gradients: bool) -> None:
    """Measures each size in the first dtype and the first size in all; on a GPU also under CUDA graphs."""
    what = "forward and backward" if gradients else "forward"
    parser = options.parser(name, f"The layer's {what} pass beside all peers.")
    options.layer_options(parser, ", ".join(SIZES["cpu"]))
    given = parser.parse_args(arguments)
    device, settings = options.settle(given)
    record = Record.begin(name, device, settings)
    seconds = given.seconds or (0.5 if given.quick else 5.0)
    sizes = options.chosen_sizes(given, SIZES.get(device.type, SIZES["cpu"]))
    names = given.against or list(PEERS)
    measure = partial(compare_layers, device=device, names=names, gradients=gradients, seconds=seconds)
    first, *others = options.chosen_dtypes(given, device)
    pairs = [(problem, first) for problem in sizes]
    pairs += [(problem, dtype) for dtype in others for problem in (sizes if given.dtype else sizes[:1])]
    jobs = [
        lambda job=(problem, dtype, graphs): [measure(job[0], job[1], graphs=job[2])]
        for problem, dtype in pairs
        for graphs in ((False, True) if device.type == "cuda" else (False,))
    ]
    collect(record, given.output, jobs)


@dataclass
class Entrant:
    """A peer ready to run: its entry in the record, its module and its input."""

    entry: Entry
    peer: Peer
    x: Tensor
    grad: Tensor

    def forward(self) -> object:
        with torch.no_grad():
            return self.peer(self.x)

    def forward_backward(self) -> object:
        """y and the gradients of x and of all parameters that learn; nothing is accumulated."""
        x = self.x.requires_grad_()
        parts = self.peer(x)
        wanted = [x, *(p for group in self.peer.trainable().values() for p in group)]
        return parts, torch.autograd.grad(parts, wanted, self.grad.chunk(len(parts), dim=1))

    def call(self, gradients: bool) -> Callable[[], object]:
        return self.forward_backward if gradients else self.forward


class Judge:
    """The exact results of a problem in float64, and plain torch's in the dtype at hand, computed when first needed."""

    def __init__(self, weights: Weights, gradients: bool):
        self.weights, self.gradients = weights, gradients
        self._known: dict[tuple[bool, bool], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def check(self, entrant: Entrant) -> None:
        """Notes the largest error in proportion to what it may be; the entry's status becomes "wrong" beyond that."""
        peer, entry = entrant.peer, entrant.entry
        roundings = peer.roundings(self.weights)
        entry.error, entry.allowed, wrong = worst_error(self.found(entrant), *self.expected(peer), roundings)
        if wrong:
            entry.status, entry.reason = WRONG, wrong

    def expected(self, peer: Peer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(float64, plain torch in the dtype) of the problem that this peer solves, by name."""
        key = peer.learns_ranks, peer.gated
        if key not in self._known:
            weights = peer.problem(self.weights)
            self._known[key] = results(weights.double(), self.gradients), results(weights, self.gradients)
        return self._known[key]

    def found(self, entrant: Entrant) -> dict[str, Tensor]:
        """y, and its gradients by the name of the operand, each in its operand's order."""
        if not self.gradients:
            return {"y": torch.cat(tuple(entrant.forward()), dim=1)}
        parts, (grad_x, *gradients) = entrant.forward_backward()
        flat, found = iter(gradients), {}
        for name, parameters in entrant.peer.trainable().items():
            found[name] = torch.cat([next(flat).flatten() for _ in parameters])
        return {"y": torch.cat(tuple(parts), dim=1).detach(), "x": grad_x, **entrant.peer.canonical(found)}


def compare_layers(
    problem: Problem,
    dtype: torch.dtype,
    *,
    device: torch.device,
    names: Sequence[str],
    gradients: bool,
    seconds: float,
    min_rounds: int = 5,
    graphs: bool = False,
    check_tokens: int | None = None,
) -> Group:
    """Forward (``gradients``: and backward) of all named entrants on one problem. Nothing an entrant does can stop it.

    ``check_tokens``: how many tokens the check uses; None: all, so that a compiled entrant is checked as it is timed.
    """
    weights = problem.weights(dtype, device)
    group = Group(problem.name, _name(dtype), problem.shape, mode="graph" if graphs else "eager")
    entrants = enter(weights, device, names, gradients=gradients, check_tokens=check_tokens)
    group.entries = [entrant.entry if isinstance(entrant, Entrant) else entrant for entrant in entrants]
    ready = [e for e in entrants if isinstance(e, Entrant) and e.entry.status == MEASURED]
    functions = {entrant.entry.name: entrant.call(gradients) for entrant in ready}
    samples, failures = interleaved(functions, device, seconds, min_rounds, graphs=graphs)
    for name, values in samples.items():
        group.entry(name).samples = values
    for name, reason in failures.items():
        group.entry(name).status, group.entry(name).reason = FAILED, reason
    torch.compiler.reset()  # graphs of this shape would count against the next one's limit
    return group


def enter(
    weights: Weights, device: torch.device, names: Sequence[str], *, gradients: bool, check_tokens: int | None = None
) -> list[Entrant | Entry]:
    """Builds and checks the entrants; an `Entry` alone stands for one that cannot run, with the reason."""
    few = weights if check_tokens is None else weights.first_tokens(check_tokens)
    judge = Judge(few, gradients)
    return [_enter(PEERS[name], weights, few, judge, device) for name in names]


def _enter(kind: type[Peer], weights: Weights, few: Weights, judge: Judge, device: torch.device) -> Entrant | Entry:
    entry = Entry(kind.name, kind.title, kind.ours, note=kind.note)
    reason = kind.unavailable(device, weights)
    if judge.gradients and not kind.trains:
        reason = kind.note
    if reason:
        entry.status, entry.reason = UNAVAILABLE, reason
        return entry
    try:
        peer = kind(kind.problem(weights))
        entrant = Entrant(entry, peer, peer.prepare(weights.x.clone()), weights.grad)
        if kind.complete:
            judge.check(Entrant(entry, peer, peer.prepare(few.x.clone()), few.grad))
    except Exception as error:
        entry.status, entry.reason = FAILED, describe(error)
        return entry
    return entrant


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
