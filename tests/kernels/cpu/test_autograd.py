"""Eager calls entered and recorded in C++: the same bits as through Python, and what is left to Python."""

import pytest
import torch
from support.operator import CASES, DIFFERENTIABLE, Case, run
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor

from fastmoe_lora import RAMoELinear, frozen_linear, ramoe_linear
from fastmoe_lora.backends import cpu

CASE = Case(tokens=6, experts=2)


def frozen(case: Case, dtype: torch.dtype = torch.float32) -> dict:
    """Arguments whose weight and bias are not trained."""
    arguments = case.arguments(dtype)
    for name in ("weight", "bias"):
        if arguments[name] is not None:
            arguments[name].requires_grad_(False)
    return arguments


def compiled(arguments: dict, dtype: torch.dtype = torch.float32, autocast: bool = False) -> Tensor | None:
    names = ("weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight", "columns", "top_k", "scaling")
    rest = (arguments.get(name) for name in (*names, "dropout", "seed"))
    return cpu.ramoe_linear(arguments["x"], dtype, autocast, *rest)


@pytest.fixture
def through_python(monkeypatch):
    """Called, leaves everything to Python from then on."""

    def leave():
        monkeypatch.setattr(cpu, "ramoe_linear", lambda *_: None)
        monkeypatch.setattr(cpu, "frozen_linear", lambda *_: None)

    return leave


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_same_bits_as_through_python(case, dtype, trained, through_python):
    arguments = case.arguments(dtype) if trained else frozen(case, dtype)
    assert (compiled(arguments, dtype) is not None) == (case.tokens > 0)
    found = run(arguments, "cpu")
    through_python()
    wanted = run(arguments, "cpu")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("router", ["token", "sample", None])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_autocast_leading_dimensions_and_views_as_through_python(router, trained, through_python):
    layer = RAMoELinear.from_linear(torch.nn.Linear(24, 36), splits=3, num_experts=2, router=router, backend="cpu")
    layer.weight.requires_grad_(trained), layer.bias.requires_grad_(trained)
    torch.nn.init.normal_(layer.lora_B)
    gates = torch.rand(4, 1, 3, 2, requires_grad=True) if router is None else None
    whole = torch.randn(24, 5, 4, requires_grad=True)
    leaves = [whole, *(p for p in layer.parameters() if p.requires_grad), *([gates] if router is None else [])]

    def outcome() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(whole.permute(2, 1, 0), gates)
            z = frozen_linear(y, torch.ones(7, 36))
        assert (y.shape, z.shape, y.dtype) == ((4, 5, 36), (4, 5, 7), torch.bfloat16)
        return [y, z, *torch.autograd.grad(z.square().sum(), leaves)]

    found = outcome()
    through_python()
    for got, wanted in zip(found, outcome(), strict=True):
        assert torch.equal(got, wanted)


def test_nothing_is_recorded_where_nothing_is_trained():
    arguments = {name: v.detach() if torch.is_tensor(v) else v for name, v in frozen(CASE).items()}
    assert compiled(arguments).grad_fn is None
    with torch.no_grad():
        assert compiled(frozen(CASE)).grad_fn is None


@pytest.mark.parametrize(
    "change",
    [
        {"weight": torch.randn(24, 36).T},
        {"weight": torch.randn(36, 25)},
        {"weight": torch.randn(35, 24)},
        {"weight": torch.randn(36, 24, device="meta")},
        {"weight": torch.randn(36, 24).bfloat16()},
        {"x": TwoTensor(torch.randn(6, 24), torch.randn(6, 24))},
        {"x": torch.randn(6, 25)},
        {"x": torch.ones(6, 24, dtype=torch.int64)},
        {"lora_A": torch.randn(3, 8, 24)},
        {"lora_B": torch.randn(3, 2, 12, 7)},
        {"lora_B": torch.randn(3, 2, 12, 8).half()},
        {"diag": torch.rand(3, 2, 7)},
        {"diag": torch.rand(3)},
        {"gates": torch.rand(6, 3, 2)},
        {"router_weight": None},
        {"router_weight": torch.randn(5, 24)},
        {"router_weight": None, "gates": torch.rand(5, 3, 2)},
        {"columns": torch.zeros(2, 8, dtype=torch.int32)},
        {"columns": torch.zeros(3, 8, dtype=torch.int64)},
        {"top_k": 0},
        {"top_k": 3},
        {"dropout": 0.5},
    ],
    ids=lambda change: "-".join(f"{n}={tuple(v.shape) if torch.is_tensor(v) else v}" for n, v in change.items()),
)
def test_the_unusual_is_left_to_python(change):
    assert compiled(frozen(CASE)) is not None
    assert compiled(frozen(CASE) | change) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": torch.zeros(3, 8, dtype=torch.int64)}, "columns: got torch.int64"),
        ({"columns": torch.zeros(2, 8, dtype=torch.int32)}, r"columns: got shape \(2, 8\)"),
        ({"dropout": 0.5}, "seed: got None"),
        ({"dropout": 0.5, "seed": torch.tensor(1.0)}, "seed: got torch.float32"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "packed", "reference"])
def test_what_the_kernels_would_misread_is_refused(change, message, backend):
    with pytest.raises((TypeError, ValueError), match=message):
        ramoe_linear(**frozen(CASE) | change, backend=backend)


def test_columns_may_have_any_strides():
    arguments = frozen(Case(tokens=6, experts=6, compacted=True))
    across = arguments["columns"].T.contiguous().T
    assert not across.is_contiguous()
    assert torch.equal(ramoe_linear(**arguments | {"columns": across}, backend="cpu"), ramoe_linear(**arguments))


@pytest.mark.parametrize("backend", ["cpu", "packed"])
@pytest.mark.parametrize("trained", DIFFERENTIABLE[:2])
def test_second_derivatives_are_refused(backend, trained):
    arguments = frozen(CASE)
    arguments[trained].requires_grad_()
    y = ramoe_linear(**arguments, backend=backend)
    with pytest.raises(NotImplementedError, match="backend 'reference'"):
        torch.autograd.grad(y.square().sum(), arguments["x"], create_graph=True)
