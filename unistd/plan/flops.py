"""Floating-point operations of operators: torch's own formulas, and those of the operators that it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import fastmoe_lora  # noqa: F401, registers its operators


def _ramoe_forward(x: Tensor, weight: Tensor, *rest: Any, out_val: tuple[Tensor, ...], **_: Any) -> int:
    (outputs, inputs), (tokens, columns) = weight.shape, _columns(out_val[1])
    logits = 0 if rest[5] is None else rest[5].shape[0]
    return 2 * tokens * (inputs * outputs + inputs * (columns + logits) + columns * outputs // out_val[1].shape[1])


def _ramoe_backward(grad_y: Tensor, x: Tensor, weight: Tensor, *rest: Any, out_val: list[Tensor], **_: Any) -> int:
    router, low_rank, needs = rest[4], rest[6], rest[10]
    (outputs, inputs), (tokens, columns) = weight.shape, _columns(low_rank)
    logits = 0 if router is None else router.shape[0]
    per_split = columns * outputs // low_rank.shape[1]
    need_x, need_weight, _, need_a, need_b, *others = needs
    inner = need_x or need_a or any(others)
    products = need_x * (inputs * outputs + inputs * (columns + logits)) + need_weight * inputs * outputs
    products += need_b * per_split + inner * per_split + (need_a or needs[-1]) * inputs * (columns + logits)
    return 2 * tokens * products


def _columns(low_rank: Tensor) -> tuple[int, int]:
    """Tokens, and computed columns of all splits together, of a low-rank product (M, S, P)."""
    tokens, splits, columns = low_rank.shape
    return tokens, splits * columns


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.shape[0] * weight.numel()


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_ours, _aten = torch.ops.fastmoe_lora, torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ours.ramoe_forward: _ramoe_forward,
    _ours.ramoe_backward: _ramoe_backward,
    _ours.frozen_linear: _linear,
    _ours.frozen_linear_backward: _linear,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
