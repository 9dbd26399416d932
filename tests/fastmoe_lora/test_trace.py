"""torch.jit.trace writes down PyTorch's own operations: no fast path, no number of tokens and no warning is in it."""

import warnings

import pytest
import torch
from support.small_layer import BACKENDS, OPTIONS, small_layer
from support.vit import adapted_vit, images
from torch import Tensor, nn

from fastmoe_lora import FrozenLinear, self_attention


@pytest.mark.shows("torch.jit.trace", "traced layers compute for other numbers of tokens; before and after other calls")
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_traced_layers_compute_for_other_numbers_of_tokens(name, backend, warm, tmp_path):
    layer = small_layer(name, backend)
    x = torch.randn(4, 5, 8)
    with torch.no_grad():
        if warm:
            layer(x)
        traced = torch.jit.trace(layer, x)
        traced.save(tmp_path / "layer.pt")
        loaded = torch.jit.load(tmp_path / "layer.pt")
        for other in (torch.randn(7, 5, 8), torch.randn(1, 5, 8), torch.randn(0, 5, 8)):
            torch.testing.assert_close(traced(other), layer(other))
            torch.testing.assert_close(loaded(other), layer(other))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert not [kind for kind in kinds if "fastmoe" in kind]


def test_a_traced_layer_has_gradients():
    layer = small_layer()
    x = torch.randn(4, 8)
    traced = torch.jit.trace(layer, x)
    other = torch.randn(7, 8)
    got = torch.autograd.grad(traced(other).square().sum(), list(layer.parameters()))
    wanted = torch.autograd.grad(layer(other).square().sum(), list(layer.parameters()))
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.shows("torch.jit.trace", "a whole Vision Transformer")
def test_whole_models_trace():
    model, attention = adapted_vit(frozen=True), FrozenLinear.from_linear(nn.Linear(8, 24))
    fused = nn.Sequential(attention, _Attend())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of torchvision's own checks
        for module, x, other in (
            (model, images(2), images(5)),
            (fused, torch.randn(2, 5, 8), torch.randn(3, 5, 8)),
        ):
            traced = torch.jit.trace(module, x)
            torch.testing.assert_close(traced(other), module(other))


class _Attend(nn.Module):
    def forward(self, qkv: Tensor) -> Tensor:
        return self_attention(qkv, 2)
