"""What nn.MultiheadAttention does between its projections: masks as it takes them, heads, weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._tracing import untraced


@untraced
def check_call(query: Any, key: Any, value: Any, features: tuple[int, int, int], batch_first: bool) -> None:
    """That these are (B, N, L) or (N, B, L) by ``batch_first``, or (N, L), alike but for N and the ``features``."""
    for name, tensor, width in zip(("query", "key", "value"), (query, key, value), features, strict=True):
        if isinstance(tensor, Tensor) and tensor.is_nested:
            hint = "in an nn.TransformerEncoder, enable_nested_tensor=False keeps tensors dense"
            raise ValueError(f"{name}: got a nested tensor, expected a dense one ({hint})")
        if not isinstance(tensor, Tensor) or tensor.dim() not in (2, 3):
            wanted = "2 dimensions, tokens and features, or 3 with a batch"
            raise ValueError(f"{name}: got {_checks.shown(tensor)}, expected {wanted}")
        if tensor.dim() != query.dim() or tensor.shape[-1] != width:
            wanted = f"{query.dim()} dimensions, the last of size {width}"
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {wanted}")
    batch = 0 if batch_first else 1
    if query.dim() == 3 and key.shape[batch] != query.shape[batch]:
        raise ValueError(f"key: got a batch of {key.shape[batch]}, expected query's {query.shape[batch]}")
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"value: got shape {tuple(value.shape)}, expected key's {tuple(key.shape[:-1])} and features")


def merged_mask(
    query: Tensor, tokens: int, heads: int, attn_mask: Tensor | None, key_padding_mask: Tensor | None, batched: bool
) -> Tensor | None:
    """What is added to the scores: broadcastable to (B, heads, N, tokens), in query's dtype; None without masks.

    ``query`` (B, N, L). A mask of bool hides where it is True, one of floats is added, and the two masks' sum counts.
    """
    batch, rows = query.shape[:2]
    merged = None
    if attn_mask is not None:
        mask = _additive("attn_mask", attn_mask, ((rows, tokens), (batch * heads, rows, tokens)), query)
        merged = mask if mask.dim() == 2 else mask.unflatten(0, (batch, heads))
    if key_padding_mask is not None:
        shape = (batch, tokens) if batched else (tokens,)
        mask = _additive("key_padding_mask", key_padding_mask, (shape,), query).view(batch, 1, 1, tokens)
        merged = mask if merged is None else merged + mask
    return merged


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, dropout: float) -> Tensor:
    """(B, N, L) from queries (B, N, L), keys and values (B, tokens, L)."""
    query, key, value = (_by_head(x, heads) for x in (query, key, value))
    return _joined(F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout))


def attend_with_weights(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """As `attend`, and the weights (B, heads, N, tokens) that the values were summed with: dropped ones are 0."""
    query, key, value = (_by_head(x, heads) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
    return _joined(weights @ value), weights


def _by_head(x: Tensor, heads: int) -> Tensor:
    by_head: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return by_head


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _additive(name: str, mask: Any, shapes: tuple[tuple[int, ...], ...], query: Tensor) -> Tensor:
    if not (isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point())):
        raise TypeError(f"{name}: got {_checks.shown(mask)}, expected a tensor of bool or of floats")
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"{name}: got shape {tuple(mask.shape)}, expected {' or '.join(map(str, shapes))}")
    if mask.device != query.device:
        raise ValueError(f"{name}: got a tensor on {mask.device}, expected query's {query.device}")
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(query.dtype)
