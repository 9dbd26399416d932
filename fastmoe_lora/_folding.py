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
        rows.append(A[split][on])
        block = (B[split].double() * factor[split, :, None]).transpose(1, 2)[on]  # (columns, out/S)
        whole = block.new_zeros(len(block), layer.splits, block.shape[1])
        whole[:, split] = block
        columns.append(whole.flatten(1))
    return torch.cat(rows).to(precision), torch.cat(columns).T.to(precision)


def _mean_diagonal(layer: RAMoELinear, rank: Tensor) -> Tensor:
    """(S, E, R): that of evaluation."""
    if layer.ranks_whole:
        return interpolate(rank, layer.max_rank)
    kind = "linear" if layer.interpolation == "sampled" else layer.interpolation
    return interpolate(rank, layer.max_rank, kind, layer.rank_window)
