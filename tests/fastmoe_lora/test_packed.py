"""The packed backend against the reference, and the reference against the definition written out."""

import pytest
import torch
from support.operator import CASES, Case, assert_right

from fastmoe_lora import ramoe_linear

IDS = [str(case) for case in CASES]


def test_reference_is_the_definition_written_as_loops():
    case = Case(tokens=5, in_features=7, out_features=6, splits=2, experts=3, max_rank=4, scaling=0.7)
    a = {
        name: value.detach() if torch.is_tensor(value) else value
        for name, value in case.arguments(torch.float64).items()
    }
    y = a["x"] @ a["weight"].T + a["bias"]
    for s in range(2):
        gates = (a["x"] @ a["router_weight"][3 * s : 3 * s + 3].T).softmax(-1)
        for e in range(3):
            d = [min(max(float(a["diag"][s, e]) - k, 0.0), 1.0) for k in range(4)]
            for k in range(4):
                t = (a["x"] @ a["lora_A"][s, e, k]) * gates[:, e] * d[k] * 0.7
                y[:, 3 * s : 3 * s + 3] += t[:, None] * a["lora_B"][s, e, :, k]
    torch.testing.assert_close(ramoe_linear(**a, backend="reference"), y)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_packed_is_right(case, dtype):
    assert_right(case, "packed", dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_is_right_with_master_weights(dtype):
    assert_right(Case(tokens=65, in_features=40), "packed", dtype, adapter_dtype=torch.float32)


@pytest.mark.parametrize("backend", ["reference", "packed"])
@pytest.mark.parametrize("case", [c for c in CASES if 0 < c.tokens < 33 and c.max_rank < 64], ids=str)
def test_gradcheck(case, backend):
    arguments = case.arguments(torch.float64)
    leaves = {name: value for name, value in arguments.items() if torch.is_tensor(value) and value.requires_grad}

    def function(*values):
        return ramoe_linear(**(arguments | dict(zip(leaves, values, strict=True))), backend=backend)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


def test_expert_columns_that_are_off_contribute_nothing():
    case = Case(compacted=True, experts=6)
    arguments = case.arguments(torch.float64)
    assert arguments["columns"].shape[1] < 48
    compacted = ramoe_linear(**arguments, backend="packed")
    torch.testing.assert_close(compacted, ramoe_linear(**(arguments | {"columns": None}), backend="packed"))


def test_packed_repeats_bit_for_bit():
    arguments = Case(tokens=130).arguments(torch.bfloat16)
    first, second = (ramoe_linear(**arguments, backend="packed") for _ in range(2))
    assert torch.equal(first, second)
