import random
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmoe_lora import RAMoELinear, check_adapters, freeze_ranks


def layer(**options) -> RAMoELinear:
    return RAMoELinear(4, 4, num_experts=2, max_rank=2, init_rank=1.5, **options)


class Model(nn.Module):
    """Two adapted layers; how the second one is used is ``use``, what is returned is ``wrap``."""

    def __init__(self, use=lambda layer, x: layer(x), wrap=lambda y: y):
        super().__init__()
        self.a, self.b, self.use, self.wrap = layer(), layer(), use, wrap

    def forward(self, x):
        return self.wrap(self.use(self.b, self.a(x)))


Pair = namedtuple("Pair", "first second")


@dataclass
class Output:
    logits: Tensor
    extra: object = None


class Slots:
    __slots__ = ("y",)

    def __init__(self, y):
        self.y = y


WRAPPED = {
    "tensor": lambda y: y,
    "tuple": lambda y: (None, y),
    "list in a dict": lambda y: {"out": [1, y]},
    "namedtuple": lambda y: Pair("a", y),
    "dataclass": Output,
    "nested dataclass": lambda y: Output(torch.zeros(1), Output(y)),
    "object": lambda y: SimpleNamespace(y=y, n=1),
    "slots": Slots,
    "distribution": lambda y: torch.distributions.Normal(y, 1.0),
    "complex": lambda y: torch.complex(y, y),
    "loss": lambda y: y.square().mean(),
    "itself": lambda y: (held := [y], held.append(held))[0],
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_names_all_adapters_whatever_holds_the_output(wrap):
    assert check_adapters(Model(wrap=wrap), torch.randn(3, 4)) == ["a", "b"]


def test_the_output_of_hugging_face_models():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    model = Model(wrap=lambda y: outputs.BaseModelOutput(last_hidden_state=y))
    assert check_adapters(model, x=torch.randn(3, 4)) == ["a", "b"]


MISSED = {
    "weight": lambda layer, x: F.linear(x, layer.weight, layer.bias),
    "left out": lambda layer, x: x,
    "detached": lambda layer, x: x + layer(x).detach(),
    "no_grad": lambda layer, x: x + torch.no_grad()(layer)(x),
    "inference_mode": lambda layer, x: x + torch.inference_mode()(layer)(x).clone(),
}


@pytest.mark.parametrize("use", MISSED.values(), ids=MISSED)
def test_an_adapter_that_is_passed_by_is_named(use):
    with pytest.raises(ValueError, match=r"^model: 1 of 2 adapters were never reached: 'b': Model reads their weight"):
        check_adapters(Model(use), torch.randn(3, 4))


REACHED = {
    "zero gate": lambda layer, x: x + 0.0 * layer(x),
    "checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=False),
    "reentrant": lambda layer, x: checkpoint(layer, x, use_reentrant=True),
    "no tokens": lambda layer, x: x + layer(x[:0]).sum(),
}


@pytest.mark.parametrize("use", REACHED.values(), ids=REACHED)
def test_an_adapter_whose_gradient_is_zero_or_late_is_reached(use):
    assert check_adapters(Model(use), torch.randn(3, 4)) == ["a", "b"]


def test_frozen_adapters_and_ranks_of_zero_are_reached():
    model = Model()
    freeze_ranks(model, 0)
    model.requires_grad_(False)
    with torch.no_grad():
        assert check_adapters(model, torch.randn(3, 4)) == ["a", "b"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_outputs_without_tensors_or_gradients_are_refused():
    with pytest.raises(ValueError, match="the output of Model holds no tensor"):
        check_adapters(Model(wrap=lambda y: {"n": 1}), torch.randn(3, 4))
    with pytest.raises(ValueError, match="2 of 2 adapters were never reached: 'a', 'b'"):
        check_adapters(Model(wrap=lambda y: y.detach()), torch.randn(3, 4))
    with pytest.raises(ValueError, match="Linear has no RAMoELinear layer"):
        check_adapters(nn.Linear(4, 4), torch.randn(3, 4))


class Stateful(nn.Module):
    """What running a model can leave behind."""

    def __init__(self, fails: bool):
        super().__init__()
        self.norm, self.a, self.drop, self.calls, self.fails = (
            nn.BatchNorm1d(4),
            layer(dropout=0.5),
            nn.Dropout(),
            0,
            fails,
        )
        self.register_buffer("cache", None)

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.cache = x.detach()
        noise = random.random() + np.random.rand()  # noqa: NPY002
        y = self.drop(self.a(self.norm(x.clone()))) + noise
        x.zero_()
        self.eval()
        if self.fails:
            raise KeyError("forward")
        return y


def draw_states():
    numpy = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(training, fails):
    model = Stateful(fails).train(training)
    model.norm.eval()
    x = torch.randn(3, 4)
    steps = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(steps.append)
    model.a.lora_A.grad = grad = torch.ones_like(model.a.lora_A)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given, modes, names = x.clone(), [module.training for module in model.modules()], set(vars(model))
    draws = draw_states()
    if fails:
        with pytest.raises(KeyError, match="forward"):
            check_adapters(model, x)
    else:
        assert check_adapters(model, x) == ["a"]
    assert model.calls == 0
    assert model.cache is None
    assert set(vars(model)) == names
    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.a.lora_A.grad is grad
    assert bool((grad == 1).all())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["a.lora_A"]
    assert torch.equal(x, given)
    assert draw_states() == draws
    assert not steps
    model.fails = False
    model(torch.randn(3, 4)).sum().backward()
    assert steps  # the parameters' own hooks are back


def test_gradients_of_inputs_are_left_alone():
    x = torch.randn(3, 4, requires_grad=True)
    check_adapters(Model(), x)
    assert x.grad is None
    assert x.requires_grad
