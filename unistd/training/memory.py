"""Whether a model and its training fit into this machine's memory, before any of it is made."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unistd.model import AdapterConfig, TrunkConfig, UniSTD
from unistd.model.weights import expected_shapes
from unistd.tasks import TaskSpec
from unistd.training.config import Config
from unistd.training.parts import frozen_parts
from unistd.training.processes import Processes

_GIB = 1 << 30


def check_memory(
    config: Config, specs: Mapping[str, TaskSpec], trunk: TrunkConfig, adapter: AdapterConfig, training: bool
) -> None:
    """Raises ValueError, naming what asks for most, where the model needs more memory than this machine has.

    Only what is needed at the least is counted, so that nothing is refused that would work. Processes of one machine
    share its memory, and each has the whole model, its shard of one (FSDP2), and its share of a batch.

    Args:
        training: count gradients, the optimiser's state, batches and what the backward pass keeps, too.
    """
    processes = Processes.of_environment()
    parts = _weights(config, specs, trunk, adapter, training and _on_cpu(config), processes.world)
    if training:
        parts |= _samples(config, specs, processes.world)
    if training and _on_cpu(config):
        parts |= _activations(config, specs, trunk, processes.world)
    needed, there = sum(parts.values()), machine_memory(processes.local_world)
    if needed > there:
        most = max(parts, key=lambda part: parts[part])
        sharing = f", a share of {processes.local_world} processes" if processes.local_world > 1 else ""
        raise ValueError(
            f"{most}: takes about {parts[most] / _GIB:,.1f} GiB, the whole at least {needed / _GIB:,.1f} GiB,"
            f" expected at most the {there / _GIB:,.1f} GiB of memory here{sharing}"
        )


def machine_memory(sharing: int = 1) -> int:
    """Bytes of memory that this process may have: the machine's, or less where it has a limit (swap not counted).

    Args:
        sharing: processes of this machine that share it; each has its own resource limits.
    """
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    group = Path("/sys/fs/cgroup/memory.max")
    text = group.read_text("ascii").strip() if group.is_file() else "max"
    if text != "max":
        amounts.append(int(text))
    soft = [resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min([min(amounts) // sharing, *(amount for amount in soft if amount != resource.RLIM_INFINITY)])


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has.

    Attributes:
        trunk: of the Transformer's own layers.
        adapters: of experts and temporal modules.
        outside: of each task's encoder and decoder.
    """

    trunk: int
    adapters: int
    outside: Mapping[str, int]

    def trained(self, config: Config) -> Parameters:
        """Of these, what learns: see `train.freeze`, `train.only` and `model.pretrained`."""
        frozen = _frozen(config)
        return Parameters(
            0 if "trunk" in frozen else self.trunk,
            0 if "adapters" in frozen else self.adapters,
            {task: 0 if task in frozen else count for task, count in self.outside.items()},
        )


def count_parameters(
    config: Config, specs: Mapping[str, TaskSpec], trunk: TrunkConfig, adapter: AdapterConfig
) -> Parameters:
    """The parameters of a model that is not made."""
    with torch.device("meta"):
        model = UniSTD(
            list(specs.values()),
            dataclasses.replace(trunk, depth=1),
            adapter=adapter,
            hidden=config.model.hidden,
            skips=config.model.skips,
        )
    own = sum(torch.Size(shape).numel() for shape in expected_shapes(trunk).values())
    outside = {task: _size(model.encoders[task]) + _size(model.decoders[task]) for task in specs}
    first = _size(model.trunk.blocks[0])
    return Parameters(own, _size(model) - sum(outside.values()) + (trunk.depth - 1) * first - own, outside)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weights(
    config: Config,
    specs: Mapping[str, TaskSpec],
    trunk: TrunkConfig,
    adapter: AdapterConfig,
    training: bool,
    world: int,
) -> dict[str, int]:
    """Bytes of a process, in float32. What is trained has a gradient and two moments beside it; each process makes all
    weights before it keeps a shard of them."""
    every = count_parameters(config, specs, trunk, adapter)
    trained = every.trained(config) if training else Parameters(0, 0, {})
    shards = world if config.train.strategy == "fsdp" else 1

    def size(count: int, trained: int) -> int:
        return max(4 * count, (4 * count + 12 * trained) // shards)

    options = config.model
    return {
        f"model.trunk (width {trunk.width}, depth {trunk.depth}, mlp_ratio {trunk.mlp_ratio:g})": size(
            every.trunk, trained.trunk
        ),
        f"model's experts (max_rank {options.max_rank}, qkv_experts {options.qkv_experts}, proj_experts"
        f" {options.proj_experts}, temporal_experts {options.temporal_experts})": size(
            every.adapters, trained.adapters
        ),
        f"model.hidden {options.hidden}": size(sum(every.outside.values()), sum(trained.outside.values())),
    }


def _samples(config: Config, specs: Mapping[str, TaskSpec], world: int) -> dict[str, int]:
    """Bytes of a process's samples of a step, and of what they are stacked from; named with the task that has the
    largest."""
    sizes = {name: 4 * (_numel(specs[name].input_shape) + _numel(specs[name].target_shape)) for name in config.learned}
    largest = max(sizes, key=lambda name: sizes[name])
    spec = specs[largest]
    shape = f"height {spec.height}, width {spec.width}, frames_in {spec.frames_in}, frames_out {spec.frames_out}"
    name = f"train.batch_size {config.train.batch_size}, task_options.{largest} ({shape})"
    return {name: 2 * config.train.batch_size * sum(_of_a_step(config, sizes)) // world}


def _activations(config: Config, specs: Mapping[str, TaskSpec], trunk: TrunkConfig, world: int) -> dict[str, int]:
    """Bytes of what a process's backward pass needs of the blocks: one tensor of each in checkpointing, else those
    within, less what only the gradients of a block's own weights need where none of them learns."""
    number = 4 if config.train.precision == "32-true" else 2
    within = 4 + trunk.mlp_ratio if {"trunk", "adapters"} <= _frozen(config) else 8 + 2 * trunk.mlp_ratio
    kept = 1 if config.model.checkpointing else within
    tokens = sum(_of_a_step(config, {name: specs[name].tokens for name in config.learned}))
    every = config.train.batch_size * tokens * trunk.width * number // world
    return {f"train.batch_size {config.train.batch_size} ({tokens} tokens in a step)": int(every * trunk.depth * kept)}


def _frozen(config: Config) -> set[str]:
    return frozen_parts(config) | ({"trunk"} if config.model.pretrained else set())


def _of_a_step(config: Config, sizes: Mapping[str, int]) -> list[int]:
    """The sizes of the tasks of a step that holds the largest."""
    return sorted(sizes.values())[-config.turns :]


def _on_cpu(config: Config) -> bool:
    wanted = config.train.accelerator
    return wanted == "cpu" or (wanted == "auto" and not torch.accelerator.is_available())


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
