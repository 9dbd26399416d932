"""The processes that work on one run together: which of them this one is, and what they tell each other.

They are started by `torchrun` or by `unistd.launch`, which both say so in the environment. One process alone is the
same with nobody to tell anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from unistd.training.config import Config


@dataclass(frozen=True)
class Processes:
    """This process among those of its job. Each method is to be called by all of them, `meet` first."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """among those of this machine"""
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> Processes:
        """As `torchrun` or `unistd.launch` has started this process, else one alone."""
        if not dist.is_torchelastic_launched():
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and prints."""
        return self.rank == 0

    def meet(self) -> None:
        """Opens the process group, if there is more than one process and it is not open yet."""
        if self.world > 1 and not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")

    def sum(self, values: Tensor) -> Tensor:
        """Sums of `values` (of one shape, on the CPU or this device) over all processes, the same bits in each."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.world == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in their order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def of_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, which alone calls it."""
        found = [make() if self.first else None]
        if self.world > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0]


ALONE = Processes()


def check_sharing(config: Config, processes: Processes) -> None:
    """Raises ValueError where the config's batch cannot be shared by the processes that there are, or are to be."""
    train = config.train
    asked = train.devices * train.nodes
    started = (processes.local_world, processes.world)
    if dist.is_torchelastic_launched() and asked > 1 and (train.devices, asked) != started:
        raise ValueError(
            f"train.devices is {train.devices} and train.nodes {train.nodes}, but {processes.world} processes were"
            f" started, {processes.local_world} on this machine: leave these keys out, or start as many"
        )
    world = max(asked, processes.world)
    tasks = config.turns
    if train.batch_size * tasks % world:
        raise ValueError(
            f"train.batch_size is {train.batch_size}: of {tasks} tasks these are {train.batch_size * tasks} samples a"
            f" pass, expected a multiple of {world}, the number of processes"
        )
    local, gpus = max(train.devices, processes.local_world), torch.cuda.device_count()
    most, what = (gpus, "GPUs") if gpus and train.accelerator != "cpu" else (max(2, os.cpu_count() or 1), "cores")
    if local > most:
        raise ValueError(f"train.devices is {local}, but this machine has {most} {what}")


def leave(status: int) -> NoReturn:
    """Ends this process, one of several, at once: torch's threads that talk to the others would outlive the interpreter
    and take the process along in the middle of their work."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
