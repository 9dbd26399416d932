"""From router logits to gates."""

import torch
from torch import Tensor

ROUTERS = ("token", "sample", None)


def route(logits: Tensor, top_k: int = 0) -> Tensor:
    """Softmax over the experts, ``(..., E) -> (..., E)``; with ``top_k > 0`` over the ``top_k`` largest logits alone.

    Computed in float32 (float64 for float64 logits). Equal logits are taken in order of their index.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if top_k:
        least = logits.detach().topk(top_k, dim=-1).values[..., -1:]
        equal = logits == least
        room = top_k - (logits > least).sum(-1, keepdim=True)  # for the equal ones: which of them topk takes is open
        dropped = (logits < least) | (equal & (equal.cumsum(-1) > room))
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits.softmax(-1)


def route_backward(grad_gates: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the logits; experts outside the top-k have gate 0 and so gradient 0."""
    return gates * (grad_gates - (grad_gates * gates).sum(-1, keepdim=True))
