"""The compiled CPU backend against the reference, on every engine."""

import pytest
import torch
from support.operator import CASES, Case, assert_right

IDS = [str(case) for case in CASES]
# Larger than a chunk of rows and a group of panels; widths of whole tiles and not; every engine's paths.
LARGE = (
    Case(tokens=1100, in_features=96, out_features=384, splits=3, experts=6),
    Case(tokens=600, in_features=416, out_features=330, splits=1, experts=2, dropout=0.2, bias=False),
    Case(tokens=48, in_features=288, out_features=600, splits=2, experts=4, compacted=True),
)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cpu_is_right(case, dtype):
    assert_right(case, "cpu", dtype)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_cpu_is_right_in_bfloat16_on_every_engine(case, engine):
    assert_right(case, "cpu", torch.bfloat16, draws=4)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_cpu_is_right_beyond_one_chunk(case, engine):
    assert_right(case, "cpu", torch.bfloat16)
    assert_right(case, "cpu", torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cpu_is_right_with_master_weights(dtype):
    assert_right(Case(tokens=65, in_features=40), "cpu", dtype, adapter_dtype=torch.float32)
