"""The registered operator among PyTorch's own machinery."""

import copy

import pytest
import torch
from support.operator import DIFFERENTIABLE, Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fastmoe_lora import RAMoELinear, backends, ramoe_linear
from fastmoe_lora.ops import ramoe_forward


def layer(**options) -> RAMoELinear:
    made = RAMoELinear(24, 36, num_experts=3, splits=3, backend="packed", **options)
    torch.nn.init.normal_(made.lora_B)
    return made


@pytest.mark.parametrize("case", [Case(), Case(routed=False, bias=False), Case(compacted=True, experts=6)], ids=str)
def test_opcheck(case):
    arguments = case.arguments(torch.float64)
    inputs = [arguments.get(name) for name in DIFFERENTIABLE]
    torch.library.opcheck(ramoe_forward, (*inputs, arguments["columns"], 0, 1.0, 0.0, None, "packed"))


@pytest.mark.shows("torch.compile", "a layer is one graph (`fullgraph=True`), with all routers and with dropout")
@pytest.mark.parametrize(
    "options", [{}, {"interpolation": "sampled"}, {"router": "sample"}, {"top_k": 2, "dropout": 0.1}]
)
def test_compiles_as_one_graph(options):
    module = layer(dtype=torch.float64, **options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for function in (module, compiled):
        torch.manual_seed(3)
        y = function(x)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), [x, module.lora_A, module.rank])])
    for eager, traced in zip(*outcomes, strict=True):
        assert traced.shape == eager.shape
        if options.keys().isdisjoint({"interpolation", "dropout"}):  # those draw other random numbers when traced
            torch.testing.assert_close(traced, eager)


def test_compiles_with_inductor():
    module = layer()
    x = torch.randn(7, 24)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


@pytest.mark.shows("autocast", "computes in bfloat16; gradients of float32 adapters are float32")
def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients():
    module = layer()
    x = torch.randn(7, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert module.lora_A.grad.dtype == x.grad.dtype == torch.float32
    rounded = copy.deepcopy(module).bfloat16()
    for name in ("lora_A", "lora_B"):  # the adapters are rounded at use, so rounding them first changes nothing
        assert torch.equal(getattr(rounded, name).float(), getattr(module, name).detach().bfloat16().float())
    assert torch.equal(y, rounded(x.detach().bfloat16()))


@pytest.mark.shows("Activation checkpointing", "repeats the dropout of the first pass")
def test_activation_checkpointing_repeats_the_dropout():
    module = layer(dropout=0.5)
    x = torch.randn(7, 24, requires_grad=True)
    gradients = []
    for call in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(call(x).square().sum(), [x, module.lora_B]))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    from fastmoe_lora.dropout import dropout_scale

    scale = dropout_scale(torch.empty(500, 400), 0.3, torch.tensor(5))
    kept = (scale > 0).double()
    spread = 5 * (0.3 * 0.7) ** 0.5  # five standard deviations of a mean, over the root of its count
    assert abs(kept.mean() - 0.7) < spread / 200_000**0.5
    assert (kept.mean(0) - 0.7).abs().max() < spread / 500**0.5  # no column and
    assert (kept.mean(1) - 0.7).abs().max() < spread / 400**0.5  # no row stands out
    torch.testing.assert_close(scale.max(), torch.tensor(1 / 0.7))


def test_frozen_weights_get_no_gradient_and_save_nothing_of_size_tokens_times_outputs():
    module = RAMoELinear.from_linear(torch.nn.Linear(64, 192), num_experts=6, splits=3, backend="packed")
    x = torch.randn(256, 64)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        module(x).sum().backward()
    assert module.weight.grad is None
    assert module.bias.grad is None
    of_tokens = [t for t in saved if t.dim() and t.shape[0] == 256]
    columns = sum(t.numel() for t in of_tokens)
    assert columns == 256 * (64 + 3 * 48 + 3 * 6)  # x, the low-rank product, the gates


def test_gates_broadcast_per_sample_and_per_task():
    module = layer(router=None, dtype=torch.float64)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    gates = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    by_sample = torch.stack([module(x[i], gates[i, 0]) for i in range(2)])
    torch.testing.assert_close(module(x, gates), by_sample)


def test_non_contiguous_and_many_leading_dimensions():
    module = layer(dtype=torch.float64)
    x = torch.randn(24, 3, 2, 5, dtype=torch.float64).permute(3, 1, 2, 0)[::2]
    torch.testing.assert_close(module(x), module(x.reshape(-1, 24)).view(3, 3, 2, 36))
    assert module(torch.randn(24, dtype=torch.float64)).shape == (36,)


def bad(**changes):
    return lambda: ramoe_linear(**(Case(tokens=4).arguments(torch.float32) | changes), backend="packed")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (bad(x=torch.randn(4, 25)), r"x: got shape \(4, 25\), expected the last dimension to be 24"),
        (bad(x=torch.ones(4, 24, dtype=torch.int64)), "x: got torch.int64"),
        (bad(x=torch.randn(4, 24).double()), "weight: got torch.float32, expected x's torch.float64"),
        (bad(lora_B=torch.randn(3, 3, 12, 7)), r"lora_B: got shape \(3, 3, 12, 7\), expected \(3, 3, 12, 8\)"),
        (bad(lora_B=torch.randn(3, 3, 12, 8).half()), "lora_B: got torch.float16, expected lora_A's"),
        (bad(diag=torch.randn(3, 4)), r"diag: got shape \(3, 4\), expected \(3, 3\)"),
        (bad(bias=torch.randn(35)), r"bias: got shape \(35,\)"),
        (bad(router_weight=torch.randn(8, 24)), r"router_weight: got shape \(8, 24\), expected \(9, 24\)"),
        (bad(router_weight=None), "gates, router_weight: got neither"),
        (bad(gates=torch.rand(4, 3, 3)), "gates, router_weight: got both"),
        (bad(router_weight=None, gates=torch.rand(5, 3, 3)), r"gates: got shape \(5, 3, 3\)"),
        (bad(top_k=4), "top_k: got 4, expected 1 to 3"),
        (bad(lora_A=torch.randn(3, 8, 24)), r"lora_A: got shape \(3, 8, 24\)"),
        (bad(columns=torch.zeros(2, 8, dtype=torch.int32)), r"columns: got shape \(2, 8\), expected \(3, "),
        (bad(columns=torch.zeros(3, 8, dtype=torch.int64)), "columns: got torch.int64, expected torch.int32"),
        (bad(dropout=0.5), "seed: got None"),
        (bad(dropout=0.5, seed=torch.tensor(1, dtype=torch.int32)), "seed: got torch.int32, expected torch.int64"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_backends_say_what_works(monkeypatch):
    known = backends()
    assert known["reference"] is True
    assert known["packed"] is True
    assert all(value is True or isinstance(value, str) for value in known.values())
    with pytest.raises(ValueError, match="backend: got 'cuda'"):
        ramoe_linear(**Case().arguments(torch.float32), backend="cuda")
    monkeypatch.setenv("FASTMOE_LORA_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="backend: got 'nonsense'"):
        ramoe_linear(**Case().arguments(torch.float32))


class _Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def test_modes_see_the_operators_and_get_what_eager_mode_gets():
    def gradients() -> list[Tensor]:
        arguments = Case().arguments(torch.float32)
        trained = [arguments[name].requires_grad_() for name in ("x", "lora_A", "lora_B")]
        y = ramoe_linear(**arguments)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), trained)]

    with _Seen() as seen:
        through_the_dispatcher = gradients()
    assert {"fastmoe_lora::ramoe_forward", "fastmoe_lora::ramoe_backward"} <= seen.names
    for got, wanted in zip(gradients(), through_the_dispatcher, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
def test_a_seed_on_another_device_is_refused_without_dropout_too(backend):
    arguments = Case(tokens=3).arguments(torch.float32) | {"seed": torch.zeros((), dtype=torch.int64, device="meta")}
    with pytest.raises(ValueError, match="seed: got a tensor on meta, expected x's cpu"):
        ramoe_linear(**arguments, backend=backend)
