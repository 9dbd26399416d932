"""The compiled backward pass of self-attention against PyTorch's, and where it steps aside."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmoe_lora import self_attention
from fastmoe_lora.backends import cpu

# (samples, tokens, heads, numbers of a head): one token, no multiples of a tile, several parts of queries.
SHAPES = [(1, 1, 2, 8), (3, 33, 2, 20), (2, 77, 3, 32), (2, 160, 4, 64), (1, 600, 2, 80), (1, 1030, 1, 64)]


def plain(qkv: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def outcome(function, qkv: Tensor, grad: Tensor, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    leaf = qkv.to(dtype).requires_grad_()
    y = function(leaf, heads)
    return y.detach(), torch.autograd.grad(y, leaf, grad.to(dtype))[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1, 3])  # nearly even attention, and peaked
def test_output_and_gradient_are_right(shape, scale, engine):
    samples, tokens, heads, depth = shape
    torch.manual_seed(0)
    qkv = torch.randn(samples, tokens, 3, heads * depth)
    qkv[:, :, :2] *= scale
    qkv, grad = qkv.flatten(2).bfloat16(), torch.randn(samples, tokens, heads * depth).bfloat16()
    assert cpu.self_attention(qkv, heads) is not None
    exact = outcome(plain, qkv, grad, heads, torch.float64)
    theirs = outcome(plain, qkv, grad, heads, torch.bfloat16)
    for got, other, want in zip(outcome(self_attention, qkv, grad, heads, torch.bfloat16), theirs, exact, strict=True):
        assert got.isfinite().all()
        assert (got.double() - want).norm() <= 2 * (other.double() - want).norm() + 1e-6


def test_same_bits_at_a_given_number_of_threads(threads):
    qkv, grad = torch.randn(3, 100, 3 * 128).bfloat16(), torch.randn(3, 100, 128).bfloat16()
    first, second = (outcome(self_attention, qkv, grad, 4, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_large_scores_overflow_nothing():
    qkv = (300 * torch.randn(1, 40, 3 * 32)).bfloat16()
    y, grad = outcome(self_attention, qkv, torch.ones(1, 40, 32), 2, torch.bfloat16)
    assert y.isfinite().all()
    assert grad.isfinite().all()


def test_what_is_not_its_own_is_left_to_pytorch():
    qkv = torch.randn(2, 12, 3 * 32).bfloat16().requires_grad_()
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    torch.testing.assert_close(self_attention(qkv, 4, mask), plain(qkv, 4, mask))
    assert "SelfAttention" in str(self_attention(qkv, 4).grad_fn.name())
    for other in (qkv.detach(), qkv.float(), qkv.half()):
        assert "SelfAttention" not in str(self_attention(other, 4).grad_fn)
        torch.testing.assert_close(self_attention(other, 4), plain(other, 4))
    assert "SelfAttention" not in str(self_attention(qkv, 4, backend="packed").grad_fn.name())
    compiled = torch.compile(self_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(qkv, 4), plain(qkv, 4))
    for declined in (qkv[0], qkv[:, :, :90], qkv.transpose(0, 1)):
        assert cpu.self_attention(declined, 4) is None
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(self_attention(qkv, 4).square().sum(), qkv, create_graph=True)
