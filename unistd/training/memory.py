"""Whether a model and its training fit into this machine's memory, before any of it is made."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from unistd.model import AdapterConfig, TrunkConfig, UniSTD
from unistd.model.weights import expected_shapes
from unistd.tasks import TaskSpec
from unistd.training.config import Config

_GIB = 1 << 30


def check_memory(
    config: Config, specs: Mapping[str, TaskSpec], trunk: TrunkConfig, adapter: AdapterConfig, training: bool
) -> None:
    """Raises ValueError, naming what asks for most, where the model needs more memory than this machine has.

    Only what is needed at the least is counted, so that nothing is refused that would work.

    Args:
        training: count gradients, the optimiser's state, batches and what the backward pass keeps, too.
    """
    parts = _weights(config, specs, trunk, adapter, training)
    if training:
        parts |= _samples(config, specs)
    if training and _on_cpu(config):
        parts |= _activations(config, specs, trunk)
    needed, there = sum(parts.values()), machine_memory()
    if needed > there:
        most = max(parts, key=lambda part: parts[part])
        raise ValueError(
            f"{most}: takes about {parts[most] / _GIB:,.1f} GiB, the whole at least {needed / _GIB:,.1f} GiB,"
            f" expected at most the {there / _GIB:,.1f} GiB of memory here"
        )


def machine_memory() -> int:
    """Bytes of memory that this process may have: the machine's, or less where it has a limit (swap not counted)."""
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft = [resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    amounts += [amount for amount in soft if amount != resource.RLIM_INFINITY]
    group = Path("/sys/fs/cgroup/memory.max")
    text = group.read_text("ascii").strip() if group.is_file() else "max"
    if text != "max":
        amounts.append(int(text))
    return min(amounts)


def count_parameters(
    config: Config, specs: Mapping[str, TaskSpec], trunk: TrunkConfig, adapter: AdapterConfig
) -> tuple[int, int, int]:
    """Parameters of the trunk's own layers, of experts and temporal modules, of encoders and decoders."""
    with torch.device("meta"):
        model = UniSTD(
            list(specs.values()), dataclasses.replace(trunk, depth=1), adapter=adapter, hidden=config.model.hidden
        )
    own = sum(torch.Size(shape).numel() for shape in expected_shapes(trunk).values())
    outside = _size(model.encoders) + _size(model.decoders)
    first = _size(model.trunk.blocks[0])
    return own, _size(model) - outside + (trunk.depth - 1) * first - own, outside


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weights(
    config: Config, specs: Mapping[str, TaskSpec], trunk: TrunkConfig, adapter: AdapterConfig, training: bool
) -> dict[str, int]:
    """Bytes, in float32. What is trained has a gradient and two moments beside it."""
    own, experts, outside = count_parameters(config, specs, trunk, adapter)
    trained = 16 if training else 4
    options = config.model
    return {
        f"model.trunk (width {trunk.width}, depth {trunk.depth}, mlp_ratio {trunk.mlp_ratio:g})": own
        * (4 if options.pretrained else trained),
        f"model's experts (max_rank {options.max_rank}, qkv_experts {options.qkv_experts}, proj_experts"
        f" {options.proj_experts}, temporal_experts {options.temporal_experts})": experts * trained,
        f"model.hidden {options.hidden}": outside * trained,
    }


def _samples(config: Config, specs: Mapping[str, TaskSpec]) -> dict[str, int]:
    """Bytes of the samples of a step, and of what they are stacked from; named with the task that has the largest."""
    sizes = {name: 4 * (_numel(spec.input_shape) + _numel(spec.target_shape)) for name, spec in specs.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    spec = specs[largest]
    shape = f"height {spec.height}, width {spec.width}, frames_in {spec.frames_in}, frames_out {spec.frames_out}"
    name = f"train.batch_size {config.train.batch_size}, task_options.{largest} ({shape})"
    return {name: 2 * config.train.batch_size * sum(_of_a_step(config, sizes))}


def _activations(config: Config, specs: Mapping[str, TaskSpec], trunk: TrunkConfig) -> dict[str, int]:
    """Bytes of what the backward pass needs of the blocks: one tensor of each in checkpointing, else those within."""
    number = 4 if config.train.precision == "32-true" else 2
    kept = 1 if config.model.checkpointing else 8 + 2 * trunk.mlp_ratio
    tokens = sum(_of_a_step(config, {name: spec.tokens for name, spec in specs.items()}))
    every = config.train.batch_size * tokens * trunk.width * number
    return {f"train.batch_size {config.train.batch_size} ({tokens} tokens in a step)": int(every * trunk.depth * kept)}


def _of_a_step(config: Config, sizes: Mapping[str, int]) -> list[int]:
    """The sizes of the tasks of a step that holds the largest."""
    return sorted(sizes.values())[-config.turns :]


def _on_cpu(config: Config) -> bool:
    wanted = config.train.accelerator
    return wanted == "cpu" or (wanted == "auto" and not torch.accelerator.is_available())


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
