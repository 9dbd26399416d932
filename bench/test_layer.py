"""Micro-benchmarks of the layer on a CPU for pytest-benchmark: ``pytest bench/ --benchmark-only``.

They can be stored and compared over time (``--benchmark-autosave``, ``--benchmark-compare``). Each entrant runs on its
own, one after another: to set entrants beside each other use ``python -m bench layer``, which interleaves them.
"""

import pytest
import torch

from bench.harness.layer_comparison import Entrant, enter
from bench.harness.machine import has_fast_bfloat16
from bench.harness.problem import Problem
from bench.peers import PEERS

PROBLEM = Problem("4 images", 784, 768, 2304, S=3)
DTYPE = torch.bfloat16 if has_fast_bfloat16() else torch.float32
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    return PROBLEM.weights(DTYPE)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", PEERS)
def test_layer(benchmark, weights, name, direction):
    """One entrant; skipped where it cannot run, failed (and not timed) where its result is wrong."""
    gradients = direction == "backward"
    benchmark.group = f"{direction}, {PROBLEM.shape}, {DTYPE}"
    (entrant,) = enter(weights, CPU, [name], gradients=gradients)
    entry = entrant.entry if isinstance(entrant, Entrant) else entrant
    if entry.status == "unavailable":
        pytest.skip(entry.reason)
    assert entry.status == "measured", entry.reason
    benchmark.extra_info |= {"shape": PROBLEM.shape, "dtype": str(DTYPE), "error": entry.error}
    benchmark.pedantic(entrant.call(gradients), rounds=10, warmup_rounds=2)
    torch.compiler.reset()
