import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fastmoe_lora import RAMoELinear, freeze_ranks


def test_a_fresh_layer_is_the_linear_layer_that_it_adapts():
    linear = nn.Linear(24, 36)
    layer = RAMoELinear.from_linear(linear, num_experts=3, splits=3, backend="packed")
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad
    x = torch.randn(2, 5, 24)
    assert torch.equal(layer(x), linear(x))


def test_parameters_have_the_documented_shapes():
    layer = RAMoELinear(24, 36, num_experts=5, max_rank=4, init_rank=2, splits=3)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (36, 24),
        "bias": (36,),
        "lora_A": (3, 5, 4, 24),
        "lora_B": (3, 5, 12, 4),
        "rank": (3, 5),
        "router.weight": (15, 24),
    }


def test_ranks_keep_their_precision_when_the_layer_is_cast():
    layer = RAMoELinear(8, 8)
    layer.rank.data.fill_(4.37)
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.rank, torch.full((1, 6), 4.37))
    assert layer.double().rank.dtype == torch.float64


def test_sampled_ranks_are_drawn_in_training_only():
    layer = RAMoELinear(8, 8, interpolation="sampled", backend="packed", dtype=torch.float64)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(4, 8, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    expected = RAMoELinear(8, 8, backend="packed", dtype=torch.float64)
    state = layer.state_dict()
    del state["_extra_state"]  # that it is of another interpolation
    expected.load_state_dict(state, strict=False)
    assert torch.equal(layer(x), expected(x))


@pytest.mark.parametrize("kind", ["token", "sample"])
def test_router_gates_are_those_of_the_forward_pass(kind):
    layer = RAMoELinear(8, 12, num_experts=3, splits=2, router=kind, top_k=2, backend="packed", dtype=torch.float64)
    nn.init.normal_(layer.lora_B)
    nn.init.normal_(layer.router.weight)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    gates = layer.router_gates(x)
    assert gates.shape == (2, 5 if kind == "token" else 1, 2, 3)
    assert ((gates > 0).sum(-1) == 2).all()
    torch.testing.assert_close(layer(x, gates), layer(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_a_frozen_layer_compute_the_same(clone):
    layer = RAMoELinear(8, 12, backend="packed")
    nn.init.normal_(layer.lora_B)
    layer.rank.data.uniform_(0, 4)
    freeze_ranks(layer)
    x = torch.randn(4, 8)
    assert torch.equal(clone(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts: got 0"),
        ({"splits": 5}, "splits: got 5, expected a divisor of out_features = 12"),
        ({"init_rank": 9}, "init_rank: got 9, expected 0 to max_rank = 8"),
        ({"router": "tokens"}, "router: got 'tokens'"),
        ({"top_k": 7}, "top_k: got 7, expected 1 to num_experts = 6"),
        ({"interpolation": "cubic"}, "interpolation: got 'cubic'"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RAMoELinear(8, 12, **options)


@pytest.mark.parametrize(("in_features", "out_features"), [(16, 0), (0, 16), (0, 0)])
@pytest.mark.parametrize("backend", ["reference", "packed"])
@pytest.mark.parametrize("router", ["token", "sample"])
def test_sizes_of_zero_work_as_in_a_linear_layer(in_features, out_features, backend, router):
    linear = nn.Linear(in_features, out_features)
    layer = RAMoELinear.from_linear(linear, router=router, backend=backend)
    x = torch.randn(2, 5, in_features, requires_grad=True)
    assert torch.equal(layer(x), linear(x))
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    freeze_ranks(layer, 9)
    assert torch.equal(layer(x), linear(x))


def test_sizes_from_numpy_are_whole_numbers():
    layer = RAMoELinear(np.int64(8), np.int32(12), num_experts=np.int16(3), init_rank=np.float32(2.5))
    assert (type(layer.in_features), type(layer.num_experts), type(layer.init_rank)) == (int, int, float)


@pytest.mark.parametrize(
    "options", [{"interpolation": "sampled"}, {"router": "sample"}, {"interpolation": "as_printed"}]
)
def test_what_is_checked_in_a_call_compiles_into_one_graph(options):
    layer = RAMoELinear(8, 12, backend="packed", **options)
    x = torch.randn(2, 5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.manual_seed(3)
    expected = layer(x)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(x), expected)


def test_a_layer_without_router_wants_gates():
    with pytest.raises(ValueError, match=r"gates: got None, expected \(\.\.\., 1, 6\)"):
        RAMoELinear(8, 12, router=None)(torch.randn(4, 8))


def test_import_is_light():
    """Little over torch itself: neither triton nor the compiler is imported along."""
    code = "import torch, sys, time; t = time.perf_counter(); import fastmoe_lora; print(time.perf_counter() - t); "
    code += "print(any(m in sys.modules for m in ('triton', 'torch._dynamo', 'open_clip', 'numpy.testing')))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, heavy = zip(*(run.stdout.split() for run in runs), strict=True)
    assert set(heavy) == {"False"}
    assert min(map(float, seconds)) < 0.3
