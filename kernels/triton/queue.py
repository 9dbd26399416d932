"""One launch, two phases: programs claim tasks in order from a queue; a consumer waits for the flag of its rows.

Why this cannot deadlock, however few programs are resident: a program claims a task when it is about to do it, tasks
are claimed in order and wait only for tasks of lower number. So the lowest unfinished task runs and waits for nothing.

All counters are int32, start at 0 and are put back to 0 inside the launch: a captured CUDA graph can be replayed.
    flags[0] next task                flags[1] programs that left
    flags[2] packed blocks of B       flags[3 + i] finished producers of row block i
"""

import triton
import triton.language as tl

HEADER = tl.constexpr(3)


@triton.jit
def claim(flags):
    """The number of the next task."""
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
