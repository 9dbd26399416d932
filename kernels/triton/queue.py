"""One launch, two phases: programs claim tasks in order from a queue; a consumer waits for the flag of its rows.

Why this cannot deadlock, however few programs are resident: tasks are claimed in order and wait only for tasks of lower
number, by programs that have started. So the lowest unfinished task either runs, and waits for nothing, or is the next
of a program whose current task is lower, thus finished.

All counters are int32, start at 0 and are put back to 0 inside the launch: a captured CUDA graph can be replayed.
    flags[0] next task                                flags[1] programs that left
    flags[2] packed blocks of B                       flags[3] tasks that have seen them all
    flags[4 + i] finished producers of row block i    flags[4 + blocks + i] consumers of it that have seen them all
"""

import triton
import triton.language as tl

HEADER = tl.constexpr(4)


@triton.jit
def claim(flags):
    """The number of the next task."""
    return tl.atomic_add(flags, 1, sem="relaxed", scope="gpu")


@triton.jit
def leave(flags):
    """Called once by every program at its end; the last one puts the queue back."""
    left = tl.atomic_add(flags + 1, 1, sem="acq_rel", scope="gpu")
    if left == tl.num_programs(0) - 1:
        tl.atomic_xchg(flags, 0, sem="relaxed", scope="gpu")
        tl.atomic_xchg(flags + 1, 0, sem="relaxed", scope="gpu")


@triton.jit
def signal(flag):
    """All of this program's stores so far become visible to whoever sees the count in `wait`."""
    tl.debug_barrier()
    tl.atomic_add(flag, 1, sem="release", scope="gpu")


@triton.jit
def wait(flag, seen, producers, consumers):
    """Until `producers` signals arrived at `flag`; the last of the `consumers` puts both counters back to 0."""
    while tl.atomic_add(flag, 0, sem="acquire", scope="gpu") < producers:
        pass
    if tl.atomic_add(seen, 1, sem="acq_rel", scope="gpu") == consumers - 1:
        tl.atomic_xchg(seen, 0, sem="relaxed", scope="gpu")
        tl.atomic_xchg(flag, 0, sem="relaxed", scope="gpu")


@triton.jit
def place(step, blocks, produce, consume, GROUP: tl.constexpr):
    """Task `step` (packing excluded) -> (is a producer, row block, which of the row block's producers or consumers).

    Row blocks come in groups of GROUP. The producers of a group come one group ahead of its consumers: their results
    are there when the consumers look, and what they read is still in the L2 cache. produce, consume: tasks of each kind
    per row block. Row blocks beyond the last (in the last groups) are to be skipped.
    """
    group = tl.minimum(GROUP, blocks)
    ahead = group * produce
    first = step < ahead
    after = tl.maximum(step - ahead, 0)
    each = group * (produce + consume)
    number = after // each
    rest = tl.where(first, step, after % each)
    producer = first | (rest < ahead)
    number = tl.where(first, 0, tl.where(producer, number + 1, number))
    rest = tl.where(producer, rest, rest - ahead)
    return producer, number * group + rest % group, rest // group


@triton.jit
def task_count(blocks, produce, consume, GROUP: tl.constexpr):
    """Number of steps that `place` deals out."""
    group = tl.minimum(GROUP, blocks)
    return group * produce + tl.cdiv(blocks, group) * group * (produce + consume)
