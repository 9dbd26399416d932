"""What a layer adds to its weight where its gates do not depend on the input."""

import torch
from torch import Tensor

from . import _checks
from ._wrappers import gathered
from .diagonal import interpolate
from .layer import RAMoELinear


def low_rank(name: str, layer: RAMoELinear, gates: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) whose product is what the layer adds to its weight with these gates."""
    A, B, rank = (gathered(tensor.detach()) for tensor in (layer.lora_A, layer.lora_B, layer.rank))
    for key, value in (("lora_A", A), ("lora_B", B)):
        if fault := _checks.element_fault(key, value, value.isfinite(), "a finite number"):
            raise ValueError(f"model: layer {name!r}: {fault}")
    if fault := _checks.rank_fault(rank, layer.max_rank, whole=False):
        raise ValueError(f"model: layer {name!r}: {fault}")
    factor = layer.scaling * gates.to(rank.device)[..., None] * _mean_diagonal(layer, rank.double())  # (S, E, R)
    precision = torch.promote_types(A.dtype, torch.float32)
    rows, columns = [], []
    for split in range(layer.splits):
        on = factor[split] != 0  # (E, R)
        rows.append(A[split][on].to(precision))
        units, width = (slice(sum(n[:split]), sum(n[: split + 1])) for n in (layer.units, layer.widths))
        own = B[units].transpose(0, 1).flatten(1, 2)  # (E, width, R)
        block = (own.double() * factor[split, :, None]).transpose(1, 2)[on]  # (columns, width)
        whole = block.new_zeros(len(block), layer.out_features)
        whole[:, width] = block
        columns.append(whole)
    return torch.cat(rows), torch.cat(columns).T.to(precision)


@torch.inference_mode(False)
@torch.no_grad()
def merged_weight(name: str, layer: RAMoELinear, gates: Tensor) -> Tensor:
    """(out, in): the weight and what the layer adds to it with these gates, summed in float32, rounded once to the
    weight's dtype (in which it may be infinite). ValueError for numbers that are not finite."""
    weight = layer.weight.detach()
    precision = torch.promote_types(weight.dtype, torch.float32)
    A, B = (half.to(weight.device, precision) for half in low_rank(name, layer, gates))
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight.to(precision), B, A).to(weight.dtype)


def _mean_diagonal(layer: RAMoELinear, rank: Tensor) -> Tensor:
    """(S, E, R): that of evaluation."""
    if layer.ranks_whole:
        return interpolate(rank, layer.max_rank)
    kind = "linear" if layer.interpolation == "sampled" else layer.interpolation
    return interpolate(rank, layer.max_rank, kind, layer.rank_window)
