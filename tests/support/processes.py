"""A few processes on the CPU that talk to each other, each with one thread."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def together(body: Callable[[int, str], None], folder: Path) -> None:
    """``body(rank, folder)`` in `WORLD` processes; raises what one of them raises."""
    mp.spawn(_run, (body, str(folder)), nprocs=WORLD)


def _run(rank: int, body: Callable[[int, str], None], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    body(rank, folder)
    dist.barrier()
    # Neither the group nor the interpreter is taken down. Caches of DTensor's hold the group, and so gloo's threads,
    # until the interpreter is gone: a thread still about to let go of a Python object then wants a lock that no longer
    # exists and takes the process along ("terminate called without an active exception"). And a group destroyed while
    # the other process closes its sockets frees what gloo's thread may be reading. All that was to be said was said.
    os._exit(0)
