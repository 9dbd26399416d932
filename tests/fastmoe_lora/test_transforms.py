"""torch.func and forward-mode derivatives: nothing is lost, for every backend."""

import copy

import pytest
import torch
from support.small_layer import BACKENDS, small_layer
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from fastmoe_lora import FrozenLinear, RAMoELinear, self_attention


def split(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's parameters, trained and frozen."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained, {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}


class _Attend(nn.Module):
    def forward(self, qkv: Tensor) -> Tensor:
        return self_attention(qkv, 2)


@pytest.mark.shows("torch.func", "per-sample gradients, `vmap(grad(...))`, on every backend")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["token", "top-k", "sample", "frozen"])
def test_per_sample_gradients(name, backend):
    layer = small_layer(name, backend)
    trained, rest = split(layer)
    x = torch.randn(5, 6, 8)

    def loss(parameters, sample):
        return functional_call(layer, {**parameters, **rest}, (sample[None],)).square().sum()

    together = vmap(grad(loss), (None, 0))(trained, x)
    for i in range(len(x)):
        alone = torch.autograd.grad(layer(x[i : i + 1]).square().sum(), [layer.get_parameter(n) for n in trained])
        for found, wanted in zip(together.values(), alone, strict=True):
            torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.shows("torch.func", "an ensemble of layers, `stack_module_state` and `vmap`")
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ensemble_in_one_call(backend):
    layers = [small_layer(backend=backend) for _ in range(3)]
    stacked, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(4, 8)
    base = copy.deepcopy(layers[0]).to("meta")
    together = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(stacked, buffers)
    torch.testing.assert_close(together, torch.stack([layer(x) for layer in layers]))


@pytest.mark.shows("torch.func", "`jvp`, and forward-mode derivatives of torch.autograd")
@pytest.mark.parametrize("backend", BACKENDS)
def test_tangents_are_not_lost(backend):
    layer = small_layer(backend=backend)
    exact = by_definition(layer).double()
    x, direction = torch.randn(4, 8), torch.randn(4, 8)
    step = 1e-6 * direction.double()
    wanted = (exact(x.double() + step) - exact(x.double() - step)) / 2e-6
    y, tangent = jvp(layer, (x,), (direction,))
    torch.testing.assert_close(y, layer(x))
    torch.testing.assert_close(tangent, wanted.float(), rtol=1e-3, atol=1e-4)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, direction)
            found = torch.autograd.forward_ad.unpack_dual(layer(dual))
            torch.testing.assert_close(found.tangent, wanted.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.shows("torch.func", "`hessian` and `jacrev`")
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend):
    layer, x = small_layer(backend=backend), torch.randn(2, 8)
    found = hessian(lambda x: layer(x).square().sum())(x)
    wanted = hessian(lambda x: by_definition(layer)(x).square().sum())(x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    rows = jacrev(layer)(x)
    assert rows.shape == (2, 12, 2, 8)


def test_frozen_linear_and_attention():
    linear = FrozenLinear.from_linear(nn.Linear(8, 24))
    model, x = nn.Sequential(linear, _Attend()), torch.randn(3, 2, 5, 8)
    torch.testing.assert_close(vmap(model)(x), torch.stack([model(one) for one in x]))
    y, tangent = jvp(linear, (x,), (x,))
    torch.testing.assert_close(tangent, x @ linear.weight.T)
    assert torch.equal(y.detach(), linear(x)) or torch.allclose(y, linear(x))


def test_dropout_under_vmap_asks_how_to_draw():
    layer = small_layer("dropout").train()
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(layer)(torch.randn(3, 4, 8))
    drawn = vmap(layer, randomness="different")(torch.randn(1, 4, 8).expand(2, -1, -1))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.shows("torch.compile", "transforms of torch.func inside of it")
def test_compiled_transforms():
    layer = small_layer()
    trained, rest = split(layer)

    def loss(parameters, sample):
        return functional_call(layer, {**parameters, **rest}, (sample[None],)).square().sum()

    def per_sample(parameters, x):
        return vmap(grad(loss), (None, 0))(parameters, x)

    x = torch.randn(5, 8)
    found = torch.compile(per_sample, backend="aot_eager", fullgraph=True)(trained, x)
    for name, wanted in per_sample(trained, x).items():
        torch.testing.assert_close(found[name], wanted)


def by_definition(layer: RAMoELinear) -> RAMoELinear:
    layer = copy.deepcopy(layer)
    layer.backend = "reference"
    return layer
