"""The compiled operators, called directly with what would make them read past their operands, or divide by zero."""

import re

import pytest
import torch
from torch import nn

from fastmoe_lora import FrozenLinear, RAMoELinear, frozen_linear, ramoe_linear
from fastmoe_lora.backends import cpu

kernels = torch.ops.fastmoe_lora_cpu


def operands(**changes) -> dict:
    """Of ``forward``: M = 5, K = 16, S = 3, E = 2, R = 4, N = 12."""
    made = {
        "x": torch.randn(5, 16),
        "weight": torch.randn(12, 16),
        "bias": torch.randn(12),
        "lora_A": torch.randn(3, 2, 4, 16),
        "lora_B": torch.randn(3, 2, 4, 4),
        "diag": torch.rand(3, 2),
        "gates": None,
        "router": torch.randn(6, 16),
        "columns": None,
        "top_k": 0,
        "scaling": 1.0,
        "dropout": 0.0,
        "seed": None,
    }
    return made | changes


def table(*row: int) -> torch.Tensor:
    return torch.tensor([row] * 3, dtype=torch.int32)


def freed() -> torch.Tensor:
    """A weight whose memory was given back, as FSDP does between uses."""
    weight = torch.randn(12, 16)
    weight.untyped_storage().resize_(0)
    return weight


WRONG = {
    "x of three dimensions": ({"x": torch.randn(1, 5, 16)}, "x: got shape"),
    "x of float64": ({"x": torch.randn(5, 16).double()}, "x: got torch.float64"),
    "x with strides": ({"x": torch.randn(16, 5).T}, "x: got strides"),
    "x on meta": ({"x": torch.randn(5, 16, device="meta")}, "x: got a tensor on meta"),
    "narrow weight": ({"weight": torch.randn(12, 15)}, "weight: got shape"),
    "wide weight": ({"weight": torch.zeros(4, 1 << 22)}, "weight: got shape"),
    "weight of one dimension": ({"weight": torch.randn(16)}, "weight: got shape"),
    "weight on meta": ({"weight": torch.randn(12, 16, device="meta")}, "weight: got a tensor on meta"),
    "weight without memory": ({"weight": freed()}, "weight: got a storage of 0 bytes"),
    "sparse weight": ({"weight": torch.randn(12, 16).to_sparse()}, "weight: got a tensor of dispatch keys"),
    "no outputs": ({"weight": torch.randn(0, 16)}, "weight: got shape"),
    "short bias": ({"bias": torch.randn(11)}, "bias: got shape"),
    "bias of float64": ({"bias": torch.randn(12).double()}, "bias: got torch.float64"),
    "experts of another width": ({"lora_A": torch.randn(3, 2, 4, 15)}, "lora_A: got shape"),
    "no experts": ({"lora_A": torch.randn(3, 0, 4, 16)}, "lora_A: got shape"),
    "five splits": ({"lora_A": torch.randn(5, 2, 4, 16)}, "weight: got 12 rows"),
    "short lora_B": ({"lora_B": torch.randn(3, 2, 3, 4)}, "lora_B: got shape"),
    "lora_B of another type": ({"lora_B": torch.randn(3, 2, 4, 4).half()}, "lora_B: got torch.float16"),
    "short diag": ({"diag": torch.rand(3, 1)}, "diag: got shape"),
    "diag of float64": ({"diag": torch.rand(3, 2).double()}, "diag: got torch.float64"),
    "diag of one dimension": ({"diag": torch.rand(6)}, "diag: got shape"),
    "short router": ({"router": torch.randn(5, 16)}, "router_weight: got shape"),
    "router on meta": ({"router": torch.randn(6, 16, device="meta")}, "router_weight: got a tensor on meta"),
    "neither gates nor router": ({"router": None}, "gates, router_weight: got neither"),
    "gates of another row": ({"router": None, "gates": torch.rand(4, 3, 2)}, "gates: got shape"),
    "column past the last": ({"columns": table(0, 8)}, "columns: got 8 in split 0, expected 0 to 7"),
    "column of -2": ({"columns": table(0, -2)}, "columns: got -2 in split 0"),
    "huge column": ({"columns": table(0, 2**31 - 1)}, "columns: got 2147483647"),
    "a column twice": ({"columns": table(3, 3)}, "columns: got 3 twice"),
    "no columns": ({"columns": torch.zeros(3, 0, dtype=torch.int32)}, "columns: got shape"),
    "columns of int64": ({"columns": table(0, 1).long()}, "columns: got torch.int64"),
    "five gates of two": ({"top_k": 5}, "top_k: got 5"),
    "scaling of NaN": ({"scaling": float("nan")}, "scaling: got nan"),
    "dropout of NaN": ({"dropout": float("nan"), "seed": torch.tensor(1)}, "dropout: got nan"),
    "dropout of 1": ({"dropout": 1.0, "seed": torch.tensor(1)}, "dropout: got 1"),
    "dropout of -1": ({"dropout": -1.0, "seed": torch.tensor(1)}, "dropout: got -1"),
    "no seed": ({"dropout": 0.5}, "seed: got None"),
    "seed without elements": ({"dropout": 0.5, "seed": torch.empty(0, dtype=torch.int64)}, "seed: got shape"),
    "seed of float32": ({"dropout": 0.5, "seed": torch.tensor(1.0)}, "seed: got torch.float32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_forward_refuses(name):
    changes, message = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        kernels.forward(*operands(**changes).values())


BACKWARD = {
    "short grad_y": ({"grad_y": torch.randn(5, 11)}, "grad_y: got shape"),
    "x of other rows": ({"x": torch.randn(4, 16)}, "x: got shape"),
    "narrow weight": ({"weight": torch.randn(12, 15)}, "got shape"),
    "no gates": ({"gates": None}, "gates: got None"),
    "gates of other rows": ({"gates": torch.rand(4, 3, 2)}, "gates: got shape"),
    "no router": ({"router": None}, "router_weight: got None"),
    "narrow product": ({"low_rank": torch.randn(5, 3, 7)}, "low_rank: got shape"),
    "product of another type": ({"low_rank": torch.randn(5, 3, 8).half()}, "low_rank: got torch.float16"),
    "column past the last": ({"columns": table(0, 9)}, "columns: got 9"),
    "dropout of 2": ({"dropout": 2.0}, "dropout: got 2"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward_refuses(name):
    changes, message = BACKWARD[name]
    made = operands(grad_y=torch.randn(5, 12), gates=torch.rand(5, 3, 2), low_rank=torch.randn(5, 3, 8)) | changes
    names = ("grad_y", "x", "weight", "lora_A", "lora_B", "diag", "gates", "router", "columns", "low_rank", "scaling")
    rest = [made[name] for name in (*names, "dropout", "seed")]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        kernels.backward(*rest, True, True, True, True, False, True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FrozenLinear.from_linear(nn.Linear(16, 12))(torch.randn(5, 17)), "x: got shape (5, 17)"),
        (lambda: FrozenLinear.from_linear(nn.Linear(16, 12))(torch.randn(5, 15)), "x: got shape (5, 15)"),
        (lambda: FrozenLinear.from_linear(nn.Linear(16, 12))(torch.randn(2, 3, 8)), "x: got shape (2, 3, 8)"),
        (lambda: frozen_linear(torch.randn(2, 16), torch.randn(12, 16), torch.randn(11)), "bias: got shape (11,)"),
        (lambda: frozen_linear(torch.randn(2, 16), torch.randn(12, 16), torch.randn(12).double()), "bias: got torch.f"),
        (lambda: frozen_linear(torch.randn(2, 16), torch.randn(12, 16, 1)), "weight: got shape (12, 16, 1)"),
        (lambda: frozen_linear(torch.randn(2, 16), torch.randn(12, 16, device="meta")), "weight: got a tensor on meta"),
        (lambda: frozen_linear(torch.randn(64, 8), torch.zeros(4, 1 << 22)), "x: got shape (64, 8)"),
        (lambda: frozen_linear(torch.randn(2, 16), [1.0]), "weight: got [1.0]"),
        (lambda: frozen_linear([1.0], torch.randn(12, 16)), "x: got [1.0]"),
        (lambda: RAMoELinear(16, 12, device="meta")(torch.randn(2, 16)), "weight: got a tensor on meta"),
        (lambda: kernels.linear(torch.randn(5, 17), torch.randn(12, 16), None), "weight: got shape"),
        (lambda: kernels.linear_backward(torch.randn(5, 17), torch.randn(12, 16)), "grad_y: got shape"),
    ],
)
def test_layers_refuse(call, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        call()


@pytest.mark.parametrize("backend", ["cpu", "packed", "reference"])
@pytest.mark.parametrize("sizes", [(16, 0), (0, 12)])
def test_layers_without_outputs_or_inputs_work_as_linear_does(backend, sizes):
    linear = nn.Linear(*sizes)
    x = torch.randn(3, sizes[0], requires_grad=True)
    for layer in (FrozenLinear.from_linear(linear), RAMoELinear.from_linear(linear, backend=backend)):
        y = layer(x)
        assert torch.equal(y, linear(x))
        y.sum().backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("backend", ["cpu", "packed"])
def test_saved_operands_that_were_given_other_data_are_refused(backend):
    layer = RAMoELinear.from_linear(nn.Linear(16, 12), backend=backend)
    y = layer(torch.randn(4, 16, requires_grad=True))
    layer.lora_B.data = torch.randn(1, 6, 3, 8)
    with pytest.raises(ValueError, match="lora_B: got shape"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "packed", "reference"])
def test_columns_in_any_order(backend):
    """A table need not be in order, nor hold a column's neighbours."""
    made = {name: value for name, value in operands(diag=torch.rand(3, 2, 4)).items() if name != "router"}
    made |= {"router_weight": torch.randn(6, 16), "top_k": None}
    exact = ramoe_linear(**made | {"columns": table(5, 0, -1, 7, 2)}, backend="reference")
    torch.testing.assert_close(ramoe_linear(**made | {"columns": table(5, 0, -1, 7, 2)}, backend=backend), exact)


@pytest.fixture
def _untouched_memory(monkeypatch):
    """Gigabytes are not filled with NaN first; what is zero and never written costs no memory."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    yield
    cpu.clear_cache()


@pytest.mark.usefixtures("_untouched_memory")
@pytest.mark.parametrize("large", ["x", "y", "weight"])
def test_more_than_two_to_the_31_elements(large):
    many = (1 << 19) + 3
    m, k, n = {"x": (many, 4096, 8), "y": (many, 8, 4096), "weight": (2, 4096, many)}[large]
    x, weight = torch.zeros(m, k, dtype=torch.bfloat16), torch.zeros(n, k, dtype=torch.bfloat16)
    x[-2:, -3:], weight[-4:, -3:] = torch.randn(2, 3).bfloat16(), torch.randn(4, 3).bfloat16()
    y = cpu.linear(x, weight, None)
    torch.testing.assert_close(y[-2:, -4:], x[-2:, -3:] @ weight[-4:, -3:].T)
    assert not y[:-2, :8].any()


@pytest.mark.usefixtures("_untouched_memory")
def test_more_than_two_to_the_31_elements_of_a_gradient():
    grad_y, weight = torch.zeros((1 << 19) + 3, 4096, dtype=torch.bfloat16), torch.randn(4096, 8).bfloat16()
    grad_y[-1, -4:] = 1
    dx = cpu.linear_backward(grad_y, weight)
    torch.testing.assert_close(dx[-1], weight[-4:].float().sum(0).bfloat16())
    assert not dx[:-1].any()
