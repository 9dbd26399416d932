"""The Triton backend in Triton's interpreter, against the reference in float64. Run by test_interpreter.py."""

from dataclasses import replace

import pytest
import torch
from support.operator import CASES, Case, assert_right, run

from fastmoe_lora import ramoe_linear
from fastmoe_lora.backends import _plan

DTYPES = (torch.float32, torch.float16)  # the interpreter multiplies bfloat16 wrongly
# Small tiles, several row blocks and groups: every loop, mask and wait is taken. What is not listed is as in `QUEUE`.
QUEUE = _plan.Plan("queue", bm=32, bn=32, bk=32, warps=4, stages=2, group=2, per_sm=3)
PLANS = {
    "queue": QUEUE,
    "merged": replace(QUEUE, bm=16, merge=True),
    "descriptors": replace(QUEUE, bn=16, bk=16, merge=True, tma=True),
    "two launches": replace(QUEUE, mode="two_launch", bn=16),
    "recompute": replace(QUEUE, mode="recompute", bm=16, bk=16),
}
# Sizes that descriptors can serve, and a router that fits the block.
ALIGNED = Case(tokens=45, in_features=48, out_features=96, experts=6)


@pytest.fixture
def use(monkeypatch):
    """use(plan): every kernel runs with it as far as it can, else with `QUEUE`."""

    def choose_always(plan: _plan.Plan):
        def choose(kind, device, geometry, tokens):
            return _plan.fit(kind, plan if _plan.runs(kind, plan, geometry) else QUEUE, geometry)

        monkeypatch.setattr(_plan, "choose", choose)

    return choose_always


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_at_odd_shapes(case, dtype, use):
    use(QUEUE)
    assert_right(case, "triton", dtype, draws=1 if dtype == torch.float32 else 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    "case",
    [ALIGNED, replace(ALIGNED, compacted=True, dropout=0.2), replace(ALIGNED, routed=False, bias=False, splits=2)],
    ids=str,
)
def test_right_with_every_kind_of_plan(case, plan, dtype, use):
    use(plan)
    assert_right(case, "triton", dtype)


def test_a_plan_that_merges_is_right_with_more_splits_than_it_can(use):
    use(PLANS["merged"])
    assert_right(replace(ALIGNED, splits=4), "triton", torch.float32)


@pytest.mark.parametrize("case", [ALIGNED, replace(ALIGNED, max_rank=5, dropout=0.2)], ids=str)
def test_right_with_master_weights(case, use):
    use(PLANS["merged"])
    assert_right(case, "triton", torch.float16, adapter_dtype=torch.float32)


@pytest.mark.parametrize("plan", [PLANS["merged"], PLANS["recompute"]], ids=["merged", "recompute"])
def test_right_with_the_pointers_that_amd_needs(plan, use, monkeypatch):
    from triton.language import target_info

    monkeypatch.setattr(target_info, "is_hip", lambda: True)
    use(plan)
    assert_right(ALIGNED, "triton", torch.float32)


def test_each_gradient_alone_is_the_same_bits(use):
    use(QUEUE)
    case = replace(ALIGNED, tokens=20, splits=1, experts=3)
    together = run(case.arguments(torch.float32), "triton")
    for needed in together.keys() - {"y"}:
        arguments = {
            name: value.detach().requires_grad_(name == needed) if name in together else value
            for name, value in case.arguments(torch.float32).items()
        }
        alone = run(arguments, "triton")
        assert set(alone) == {"y", needed}
        assert torch.equal(alone[needed], together[needed])


def test_every_plan_gives_the_gates_and_the_low_rank_product_that_backward_needs(use):
    """The reference has no such outputs: packed in float64 does."""
    from fastmoe_lora.backends import packed, triton

    a = ALIGNED.arguments(torch.float64)
    rest = (0, 0.7, 0.0, None)
    names = ("x", "weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight", "columns")
    operands = [v if v is None else v.detach() for v in map(a.get, names)]
    _, low_rank, gates = packed.forward(*operands, *rest)
    single = [v if v is None else v.float() for v in operands]
    for plan in PLANS.values():
        use(plan)
        _, got_low_rank, got_gates = triton.forward(*single, *rest)
        assert (got_low_rank - low_rank).norm() < 1e-5 * low_rank.norm()
        assert (got_gates - gates).norm() < 1e-5 * gates.norm()


def test_repeats_bit_for_bit_and_leaves_its_counters_at_zero(use):
    from fastmoe_lora.backends._flags import flags

    use(PLANS["merged"])
    case = replace(ALIGNED, compacted=True)  # packs B, so that every counter is used
    first, second = (run(case.arguments(torch.float32), "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not flags(1, torch.device("cpu")).any()


def test_the_last_program_puts_every_counter_back():
    from fastmoe_lora.kernels.triton.queue import HEADER, leave

    blocks = 600
    counters = torch.full((HEADER.value + blocks + 1,), 7, dtype=torch.int32)
    counters[1] = 0  # nobody has left yet
    leave[(1,)](counters, blocks)
    assert counters.nonzero().tolist() == [[HEADER.value + blocks]]


def test_one_row_may_have_any_stride_under_descriptors(use):
    use(PLANS["descriptors"])
    arguments = replace(ALIGNED, tokens=1).arguments(torch.float32)
    x = torch.empty(1, ALIGNED.in_features + 3)[:, :-3].copy_(arguments["x"].detach())
    assert x.is_contiguous()
    assert x.stride(0) * x.element_size() % 16
    assert torch.equal(
        ramoe_linear(**arguments | {"x": x}, backend="triton"), ramoe_linear(**arguments, backend="triton")
    )


def test_bfloat16_is_refused_in_the_interpreter():
    with pytest.raises(TypeError, match="interpreter multiplies bfloat16 wrongly"):
        ramoe_linear(**Case().arguments(torch.bfloat16), backend="triton")
