"""Memory of the adapted layer beside all peers: kept for the backward pass, and the peak of forward and backward."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from bench.harness import options
from bench.harness.collect import collect
from bench.harness.layer_comparison import Entrant, enter
from bench.harness.peak import kept_for_backward, peak_rise
from bench.harness.problem import Problem
from bench.harness.record import FAILED, MEASURED, Entry, Group, Record
from bench.harness.timing import describe
from bench.peers import PEERS

KEPT, PEAK = "kept for backward", "peak of both passes"
SIZES = {"cpu": ["qkv", "proj"], "cuda": ["qkv", "qkv-1024", "llm"]}


def main(arguments: list[str]) -> None:
    parser = options.parser("memory", __doc__)
    options.layer_options(parser, ", ".join(SIZES["cpu"]))
    given = parser.parse_args(arguments)
    device, settings = options.settle(given)
    record = Record.begin("memory", device, settings)
    # Bytes, not speed: one dtype tells all.
    dtype = options.chosen_dtypes(given, device)[0]
    names = given.against or list(PEERS)
    sizes = options.chosen_sizes(given, SIZES.get(device.type, SIZES["cpu"]))
    collect(record, given.output, [partial(measure, problem, dtype, device, names) for problem in sizes])


def measure(problem: Problem, dtype: torch.dtype, device: torch.device, names: Sequence[str]) -> tuple[Group, Group]:
    """The groups `KEPT` and `PEAK`, in MB; one measurement each, since bytes do not vary."""
    weights = problem.weights(dtype, device)
    entrants = enter(weights, device, names, gradients=True)
    kept_group = tally(Group(f"{problem.name}, {KEPT}", _name(dtype), problem.shape, unit="MB"), entrants, kept)
    peak_group = Group(f"{problem.name}, {PEAK}", _name(dtype), problem.shape, unit="MB")
    tally(peak_group, entrants, lambda entrant: peak(entrant, device))
    torch.compiler.reset()
    return kept_group, peak_group


def kept(entrant: Entrant) -> float:
    """MB that its forward pass keeps."""
    x = entrant.x.requires_grad_()
    given = [x, *entrant.peer.parameters(), *entrant.peer.buffers()]
    return kept_for_backward(lambda: entrant.peer(x), given)


def peak(entrant: Entrant, device: torch.device) -> float:
    """MB of the highest point of its forward and backward pass."""
    entrant.forward_backward()  # compiles, packs, and fills caches that stay
    return peak_rise(entrant.forward_backward, device)


def tally(group: Group, entrants: Sequence[Entrant | Entry], measure: Callable[[Entrant], float]) -> Group:
    """Fills the group with one measurement an entrant; bytes do not vary, so one is enough."""
    for entrant in entrants:
        source = entrant.entry if isinstance(entrant, Entrant) else entrant
        entry = replace(source, samples=[])
        group.entries.append(entry)
        if isinstance(entrant, Entrant) and source.status == MEASURED:
            try:
                entry.samples = [measure(entrant)]
            except Exception as error:
                entry.status, entry.reason = FAILED, describe(error)
    return group


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
