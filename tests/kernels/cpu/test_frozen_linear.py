"""FrozenLinear: the packed product alone, and where it steps aside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmoe_lora import FrozenLinear, frozen_linear
from fastmoe_lora.backends import cpu

SHAPES = [(0, 24, 36), (1, 19, 21), (17, 70, 34), (600, 416, 330)]


def gradient(function, x, grad):
    x = x.detach().requires_grad_()
    y = function(x)
    return y, torch.autograd.grad(y, x, grad.to(y.dtype))[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_right(shape, dtype, bias):
    m, k, n = shape
    weight, x = torch.randn(n, k).bfloat16() * k**-0.5, torch.randn(m, k).bfloat16()
    b, grad = torch.randn(n).bfloat16() if bias else None, torch.randn(m, n).bfloat16()

    def outcome(function, dtype):
        return gradient(
            lambda x: function(x, weight.to(dtype), None if b is None else b.to(dtype)), x.to(dtype), grad.to(dtype)
        )

    for got, plain, exact in zip(
        outcome(frozen_linear, dtype), outcome(F.linear, dtype), outcome(F.linear, torch.float64), strict=True
    ):
        assert got.isfinite().all()
        error = (got.double() - exact).norm()
        if dtype == torch.float32:
            assert error <= 1e-5 * exact.norm()
        else:
            assert error <= 2 * (plain.double() - exact).norm() + 1e-6


def test_shares_and_freezes_a_linear_layer():
    linear = nn.Linear(24, 36)
    layer = FrozenLinear.from_linear(linear)
    assert layer.weight is linear.weight
    assert not any(p.requires_grad for p in layer.parameters())
    assert layer.state_dict().keys() == linear.state_dict().keys()
    x = torch.randn(2, 3, 24).transpose(0, 1)
    torch.testing.assert_close(layer(x), F.linear(x, linear.weight, linear.bias))
    assert layer(torch.randn(24)).shape == (36,)


def test_trained_weights_get_their_gradients():
    before, layer = cpu.cached_bytes(), FrozenLinear(24, 36)
    layer(torch.randn(5, 24)).sum().backward()
    assert layer.weight.grad is not None
    assert cpu.cached_bytes() == before


def test_float64_and_meta_fall_back():
    layer = FrozenLinear(24, 36).requires_grad_(False)
    x = torch.randn(5, 24, dtype=torch.float64)
    assert torch.equal(layer.double()(x), F.linear(x, layer.weight, layer.bias))
    assert layer.to("meta")(torch.empty(5, 24, dtype=torch.float64, device="meta")).shape == (5, 36)


def test_autocast_packs_the_float32_weight_rounded_and_does_not_cast_it_every_time():
    layer = FrozenLinear(64, 96, bias=False).requires_grad_(False)
    x = torch.randn(5, 64)
    cpu.clear_cache()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        before = cpu.cached_bytes()
        assert torch.equal(layer(x), y)
        _, grad = gradient(layer, x, torch.ones(5, 96))
    assert y.dtype == torch.bfloat16
    assert grad.dtype == torch.float32
    if torch.ops.fastmoe_lora_cpu.engine() != "float":
        assert before == 64 * 96 * 2
    rounded = layer.bfloat16()
    assert torch.equal(y, rounded(x.bfloat16()))


def test_compiles_as_one_graph_and_passes_opcheck():
    layer = FrozenLinear(24, 36).requires_grad_(False)
    x = torch.randn(5, 24, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, want in zip(gradient(compiled, x, torch.ones(5, 36)), gradient(layer, x, torch.ones(5, 36)), strict=True):
        assert torch.equal(got, want)
    torch.library.opcheck(torch.ops.fastmoe_lora.frozen_linear.default, (x, layer.weight, layer.bias))
    torch.library.opcheck(torch.ops.fastmoe_lora.frozen_linear_backward.default, (torch.randn(5, 36), layer.weight))
