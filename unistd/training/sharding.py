"""A model and its optimizers in shards over processes (FSDP2), and whole again for a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from unistd.model import UniSTD


def shard(model: UniSTD, mesh: DeviceMesh, frozen: bool) -> UniSTD:
    """Shards a model in place: each block by itself, gathered where it computes, and all the rest together.

    frozen: shard what does not learn too.
    """
    kept = set() if frozen else {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for block in model.trunk.blocks:
        fully_shard(block, mesh=mesh, ignored_params=kept)
    return fully_shard(model, mesh=mesh, ignored_params=kept)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds but a part of it."""
    return isinstance(model, FSDPModule)


def whole(tree: Any) -> Any:
    """A state with whole tensors on the CPU in the place of shards; all processes call this."""
    return tree_map_only(DTensor, lambda value: value.full_tensor().cpu(), tree)


def shard_state(optimizer: Optimizer) -> None:
    """Lays the state of an optimizer, which was loaded whole, out as its parameters are."""
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, DTensor):
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and not isinstance(value, DTensor):
                    state[name] = _laid_out(value, parameter)


def _laid_out(value: Tensor, like: DTensor) -> DTensor:
    """The same value in each process, as shards: no process sends anything."""
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
