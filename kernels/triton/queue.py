"""One launch, two phases: programs claim the producers one by one, then do a fixed share of the consumers each.

A consumer waits for the flag of its rows. Why this cannot deadlock, however few programs are resident: a program claims
a producer when it is about to do it, and turns to consumers only when none is left. So every producer that somebody
waits for is done or being done. (Packing comes before the producers, in the same way.)

The consumers of a program are one loop of known length: the compiler fetches a tile's first operands while the tile
before it is finished. Each program's claim that comes after the last producer is its place among the consumers: those
that had no producer to do come first, and get one tile more where tiles do not divide evenly.

All counters are int32, start at 0 and are put back to 0 inside the launch: a captured CUDA graph can be replayed.
    flags[0] claims                   flags[1] programs that left
    flags[2] packed blocks of A, B    flags[3 + i] finished producers of row block i
"""

import triton
import triton.language as tl

HEADER = tl.constexpr(3)


@triton.jit
def claim(flags):
    """The next number, from 0 on."""
    return tl.atomic_add(flags, 1, sem="relaxed", scope="gpu")


@triton.jit
def leave(flags, blocks):
    """Called once by every program at its end; the last one puts all counters back, which nobody reads any more."""
    left = tl.atomic_add(flags + 1, 1, sem="acq_rel", scope="gpu")
    if left == tl.num_programs(0) - 1:
        for first in tl.range(0, blocks + HEADER, 256, num_stages=1):
            counter = first + tl.arange(0, 256)
            tl.store(flags + counter, 0, mask=counter < blocks + HEADER)


@triton.jit
def signal(flag):
    """All of this program's stores so far become visible to whoever sees the count in `wait`."""
    tl.debug_barrier()
    tl.atomic_add(flag, 1, sem="release", scope="gpu")


@triton.jit
def wait(flag, signals):
    """Until `signals` have arrived at `flag`: what their senders stored before is visible then to the whole program."""
    while tl.atomic_add(flag, 0, sem="acquire", scope="gpu") < signals:
        pass


@triton.jit
def place(tile, blocks, TILES: tl.constexpr, GROUP: tl.constexpr):
    """Consumer `tile` -> (row block, which of its TILES).

    From the last row block to the first: what the producers read last is still in the L2 cache. GROUP row blocks are
    dealt out together, so that their tiles share both operands there.
    """
    tile = blocks * TILES - 1 - tile
    first = tile // (GROUP * TILES) * GROUP
    size = tl.minimum(GROUP, blocks - first)
    inside = tile % (GROUP * TILES)
    return first + inside % size, inside // size
