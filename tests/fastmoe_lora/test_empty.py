"""Batches of no samples, samples of no tokens: outputs of that shape, gradients of zero, from every backend."""

import pytest
import torch
from support.small_layer import BACKENDS, OPTIONS, small_layer
from torch import nn

from fastmoe_lora import FrozenLinear, RAMoECrossAttention, RAMoELinear, RAMoESelfAttention, self_attention

SHAPES = [(0,), (0, 5), (2, 0), (0, 0), (3, 0, 4)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def assert_zero_gradients(module: nn.Module, *inputs: torch.Tensor) -> None:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, value in {**trained, **{f"input {i}": x for i, x in enumerate(inputs)}}.items():
        if value.grad is not None:  # ranks that are frozen have none
            assert value.grad.shape == value.shape, name
            assert torch.equal(value.grad, torch.zeros_like(value)), name
    assert all(x.grad is not None for x in inputs)


@pytest.mark.shows("Batches", "of no samples, and samples of no tokens: forward and backward, on every backend")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layers(backend, name, dtype, training):
    layer = small_layer(name, backend).to(DTYPES[dtype]).train(training)
    for shape in SHAPES:
        if name == "sample" and len(shape) < 2:
            continue
        x = torch.randn(*shape, 8, dtype=DTYPES[dtype], requires_grad=True)
        layer.zero_grad()
        y = layer(x)
        assert (y.shape, y.dtype) == ((*shape, 12), DTYPES[dtype])
        y.sum().backward()
        assert_zero_gradients(layer, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_gates(backend):
    layer = RAMoELinear(8, 12, splits=3, num_experts=3, router=None, backend=backend)
    for shape in SHAPES:
        for leading in (shape, shape[:-1], (1,) * len(shape)):
            x, gates = torch.randn(*shape, 8, requires_grad=True), torch.rand(*leading, 3, 3, requires_grad=True)
            if leading == shape[:-1] and leading:
                gates = torch.rand(*leading, 1, 3, 3, requires_grad=True)
            y = layer(x, gates)
            assert y.shape == (*shape, 12)
            y.sum().backward()
            assert_zero_gradients(layer, x, gates)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_frozen_layers_and_attention(backend, autocast):
    options = {"num_experts": 2, "backend": backend}
    itself = RAMoESelfAttention.from_attention(nn.MultiheadAttention(8, 2, batch_first=True), **options)
    other = RAMoECrossAttention.from_attention(nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True), **options)
    linear, layer = FrozenLinear.from_linear(nn.Linear(8, 12)), small_layer(backend=backend)
    for batch, tokens in ((0, 5), (2, 0), (0, 0)):
        x = torch.randn(batch, tokens, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = {
                "linear": linear(x),
                "layer": layer(x),
                "self": itself(x, x, x, need_weights=False)[0],
                "cross": other(x, x.new_ones(batch, 3, 6), x.new_ones(batch, 3, 4), need_weights=False)[0],
                "function": self_attention(linear(torch.cat([x, x, x], -1)[..., :8]).repeat(1, 1, 2), 2),
            }
        widths = {"linear": 12, "layer": 12, "self": 8, "cross": 8, "function": 8}
        for name, y in outputs.items():
            assert y.shape == (batch, tokens, widths[name]), name
        sum(y.float().sum() for y in outputs.values()).backward()
        for module in (itself, other, linear, layer):
            assert_zero_gradients(module)
        assert x.grad.shape == x.shape
