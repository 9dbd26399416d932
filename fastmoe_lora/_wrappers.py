"""Models inside of wrappers (compiled, data-parallel, averaged, sharded), seen as if there were none."""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn

_INNER = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of those that hold nothing but one ``module`` (DDP, AveragedModel, ...) or compiled one."""
    while len(children := dict(model.named_children())) == 1 and not any(True for _ in model.parameters(recurse=False)):
        name, child = next(iter(children.items()))
        if name != "module" and name not in _INNER:
            break
        model = child
    return model


def plain_name(name: str) -> str:
    """A name in a model without the parts that wrappers inside of it add."""
    return ".".join(part for part in name.split(".") if part not in _INNER)


def plain_names(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Plain name -> name, for names that a wrapped model may have had; ``expected`` are the plain ones of this model.

    A "module." before all of them is a wrapper's, unless the names fit as they are. ValueError if two become one.
    """
    names, wanted = list(names), set(expected)
    plain = [plain_name(name) for name in names]
    while plain and set(plain) != wanted and all(name.partition(".")[0] == "module" for name in plain):
        plain = [name.partition(".")[2] for name in plain]
    found = dict(zip(plain, names, strict=True))
    if len(found) < len(names):
        twice = next(name for name in plain if plain.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice but for the names of wrappers")
    return found


def gathered(value: Tensor) -> Tensor:
    """The whole of a tensor of which each process has a shard (a call in all of them); others as they are."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def scattered(value: Tensor, like: Tensor) -> Tensor:
    """``value``, the same in all processes, laid out over them as ``like`` is."""
    if not hasattr(like, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements)  # type: ignore[attr-defined] # a DTensor


def writes(tensors: Iterable[Tensor]) -> bool:
    """Whether this process is the one that writes: the first, of those that hold shards of any of these tensors."""
    sharded = any(hasattr(value, "full_tensor") for value in tensors)
    return not sharded or dist.get_rank() == 0
