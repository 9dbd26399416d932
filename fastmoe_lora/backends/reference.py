"""The definition, in plain differentiable PyTorch: the oracle of every test, in any dtype and on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diagonal import as_diagonal
from ..dropout import dropout as counter_dropout
from ..routing import route


def available() -> bool:
    return True


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    diag: Tensor,
    gates: Tensor | None,
    router_weight: Tensor | None,
    columns: Tensor | None,
    top_k: int,
    scaling: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """``y = x W^T + b + scaling * sum_e gate_e * B_e diag(d_e) A_e x~`` of each split s: (M, K) -> (M, N)."""
    splits, experts, max_rank, _ = lora_A.shape
    adapter_input = counter_dropout(x, dropout, seed)
    if router_weight is not None:
        gates = route((adapter_input @ router_weight.to(x.dtype).T).unflatten(-1, (splits, experts)), top_k)
    d = as_diagonal(diag, max_rank)  # (S, E, R)
    if columns is not None:
        d = d * active_columns(columns, experts * max_rank).view_as(d)
    low_rank = torch.einsum("mi,seki->msek", adapter_input, lora_A.to(x.dtype))
    t = (low_rank * (gates[..., None] * d * scaling)).to(x.dtype)  # type: ignore[index] # (M, S, E, R)
    update = torch.einsum("msek,seok->mso", t, lora_B.to(x.dtype))
    return F.linear(x, weight, bias) + update.flatten(1)


def active_columns(columns: Tensor, width: int) -> Tensor:
    """The column table (S, P) of a compacted adapter as a mask (S, width)."""
    every = torch.arange(width, device=columns.device, dtype=columns.dtype)
    return (columns[:, :, None] == every).any(1)
