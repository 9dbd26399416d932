"""How the compiled sm_90 kernels use memory, at the paper's sizes: no bank conflicts to speak of, no sector in vain.

Counted in the emulator. A wavefront is one pass over the 32 banks of shared memory, a sector 32 bytes of global memory.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from support.emulator.device_memory import DeviceMemory, Unpublished
from support.emulator.shared import Shared
from support.operator import Case, run
from support.triton_backend import emulated_backend

pytest.importorskip("triton")


def wavefronts(addresses, width: int) -> int:
    """Passes that a warp's access takes: in parts of 128 bytes, in each as many as the busiest bank has words."""
    lanes = 32 * 4 // max(width, 4)
    total = 0
    for first in range(0, addresses.size, lanes):
        words = addresses[first : first + lanes, None].astype(np.int64) // 4 + np.arange(max(width // 4, 1))
        total += np.bincount(np.unique(words) % 32).max()
    return total


def sectors(addresses) -> int:
    return np.unique(addresses.astype(np.int64) // 32).size


@pytest.fixture(scope="module")
def traffic():
    """kernel -> Counter of wavefronts and sectors, and of how many would do."""
    counted: dict[str, Counter] = {}

    def count(what: str, number: int, least: int) -> None:
        counter = counted.setdefault(gpu.launched[-1], Counter())
        counter[what] += number
        counter[f"least {what}"] += least

    def counting(method, what):
        def call(self, *arguments):
            *_, addresses, size = arguments
            width = size if isinstance(size, int) else size.shape[1]
            if what == "wavefronts":
                count(what, wavefronts(addresses, width), -(-addresses.size * max(width, 4) // 128))
            elif addresses.size > 1:  # the queue's counters aside
                count(what, sectors(addresses), -(-addresses.size * width // 32))
            return method(self, *arguments)

        return call

    with pytest.MonkeyPatch.context() as patch, emulated_backend(patch) as gpu:
        for owner, name, what in (
            (Shared, "load", "wavefronts"),
            (Shared, "store", "wavefronts"),
            (DeviceMemory, "load", "sectors"),
            (Unpublished, "store", "sectors"),
        ):
            patch.setattr(owner, name, counting(getattr(owner, name), what))
        case = Case(tokens=256, in_features=192, out_features=2304, experts=6)
        run(case.arguments(torch.bfloat16), "triton")
    return counted


# The sum of the diagonal's gradient over rows crosses warps with 8 words of a bank at a time: 1,000 cycles of a
# producer's 12,000. The gates' rows are 24 bytes of 72, `reduce` reads pieces of 8 bytes.
@pytest.mark.parametrize(
    ("kernel", "conflicts", "waste"),
    [("forward", 1.0, 1.01), ("grad_input", 1.4, 1.02), ("grad_weight", 1.0, 1.0), ("reduce", 1.0, 1.2)],
)
def test_memory_is_used_well(kernel, conflicts, waste, traffic):
    counter = traffic[kernel]
    assert counter["wavefronts"] <= conflicts * counter["least wavefronts"]
    assert counter["sectors"] <= waste * counter["least sectors"]
