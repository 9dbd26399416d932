"""Runs compiled kernels without a GPU: an interpreter of the PTX that Triton makes, for the tests.

Triton's own interpreter runs the source. This runs what the compiler made of it: warps one by one in a random order,
bfloat16, matrix instructions, asynchronous copies and the barriers between them, and it stops (`Fault`) where the
result would depend on luck: memory outside of every tensor, shared memory that two warps use without a barrier between
them, that a copy has not filled yet or a matrix instruction still reads, or that lacks a proxy fence; a store that was
not released before another program reads it; a wait that never ends.

    parser     PTX -> instructions          execution  warps, programs, their scheduling
    decoder    instruction -> a function    shared, device_memory, copies  memories and what is under way in them
    arithmetic, matrix                      driver     takes the place of the GPU's driver below Triton

What it does not know it refuses (`Unknown`), and it is no model of speed.
Semantics: NVIDIA, Parallel Thread Execution ISA.
"""

from .driver import Emulated
from .fault import Fault

__all__ = ["Emulated", "Fault"]
