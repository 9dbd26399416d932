"""Every plan of the shipped table once in Triton's interpreter, against float64. Run by test_interpreter.py."""

import pytest
import torch
from support.operator import Case, assert_right

from fastmoe_lora.backends import _plan

TABLE = _plan.table()
# Two splits, more rows than the largest tile, and sizes that descriptors of 256 columns can serve.
CASE = Case(tokens=140, in_features=256, out_features=512, splits=2, experts=6)


def plans(kind: str) -> dict[_plan.Plan, int]:
    """The distinct tilings of all architectures -> bits of the dtype they are for."""
    rows = [row for section in TABLE.values() for row in section[kind]]
    return {_plan.plan_of(row | {"warps": 4, "stages": 2}): row["bits"] for row in rows}


@pytest.mark.parametrize("kind", _plan.KINDS)
def test_plan_is_right(kind, monkeypatch):
    chosen = _plan.choose
    for plan, bits in plans(kind).items():

        def choose(wanted, device, geometry, tokens, plan=plan):
            return _plan.fit(kind, plan, geometry) if wanted == kind else chosen(wanted, device, geometry, tokens)

        monkeypatch.setattr(_plan, "choose", choose)
        assert_right(CASE, "triton", torch.float32 if bits == 32 else torch.float16)
