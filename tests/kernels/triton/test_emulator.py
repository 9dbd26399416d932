"""The emulator notices what it is there for: code that lost what orders it, and kernels that do not stay in bounds."""

import re
from dataclasses import replace

import pytest
import torch
from support.emulator import Emulated, Fault, driver
from support.operator import Case
from support.triton_backend import emulated_backend

from fastmoe_lora.backends import _flags, _plan, triton

tl = pytest.importorskip("triton.language")
import triton as compiler  # noqa: E402

CASE = Case(tokens=140, in_features=256, out_features=256, splits=1, experts=2)
NAMES = ("x", "weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight", "columns")


@pytest.fixture
def forward(monkeypatch):
    """forward(change): y with the large sm_90 plan, each instruction replaced by what change makes of it."""
    gpu = emulated_backend(monkeypatch)

    def run(change=lambda step: step) -> torch.Tensor:
        compiled = driver.compiled

        def changed(*key):
            kernel, code = compiled(*key)
            return kernel, [change(step) for step in code]

        monkeypatch.setattr(driver, "compiled", changed)
        operands = [v.detach() if torch.is_tensor(v) else v for v in map(CASE.arguments(torch.bfloat16).get, NAMES)]
        weight, lora_a, diag, router = operands[1], operands[3], operands[5], operands[7]
        geometry = triton.geometry_of(weight, lora_a, diag, router, None, 0, 0.0, operands[0])
        plan = _plan.choose("forward", "sm_90", geometry, CASE.tokens)
        assert plan.tma
        assert plan.flatten
        with gpu:
            return triton.run_forward(geometry, plan, *operands, 0, 1.0, 0.0, None)[0]

    yield run
    _flags.flags(64, torch.device("cpu")).zero_()  # a launch that broke off has left them


def without(pattern: str):
    """Instructions that match do nothing."""

    def change(step):
        return (
            replace(step, run=lambda warp, mask: None)
            if re.match(pattern, step.text.lstrip("@!%p0123456789 "))
            else step
        )

    return change


def test_the_kernel_as_it_is_runs_in_any_order(forward):
    first = forward()
    assert first.isfinite().all()
    assert torch.equal(first, forward())


@pytest.mark.parametrize(
    ("lost", "noticed"),
    [
        (r"bar\.sync", "since the last barrier|no mbarrier was made"),
        (r"fence\.proxy\.async", "without fence.proxy.async"),
        (r"wgmma\.wait_group", "accumulator of a matrix product that is under way|may still read"),
        (r"cp\.async\.wait_group", "a copy has not filled yet|a copy is filling"),
        (r"cp\.async\.bulk\.wait_group", "may still read"),
        (r"mbarrier\.init", "no mbarrier was made"),
        (r"mbarrier\.arrive", "every program waits"),
        (r"atom\.global\.gpu\.release", "every program waits"),
    ],
)
def test_code_that_lost_what_orders_it_is_at_fault(lost, noticed, forward):
    with pytest.raises(Fault, match=noticed):
        forward(without(lost))


def test_what_no_release_published_is_not_seen(forward):
    def relax(step):
        run = step.run
        if not re.search(r"atom\.global\.gpu\.release", step.text):
            return step

        def relaxed(warp, mask):
            warp.program.unpublished.release = lambda warp: None
            return run(warp, mask)

        return replace(step, run=relaxed)

    assert not forward(relax).isfinite().all()


@compiler.jit
def copy(source, target, N: tl.constexpr):
    tl.store(target + tl.arange(0, N), tl.load(source + tl.arange(0, N)))


@compiler.jit
def await_flag(flag):
    while tl.atomic_add(flag, 0, sem="acquire") < 1:
        pass


@compiler.jit
def integers(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(a + i), tl.load(b + i)
    tl.store(out + i, x // y)
    tl.store(out + N + i, x % y)
    tl.store(out + 2 * N + i, (x << 3) ^ (x >> 2) | (x & y))
    tl.store(out + 3 * N + i, tl.minimum(x * y, x) - tl.maximum(x, -y))
    tl.store(out + 5 * N + i, tl.max(x, 0))
    tl.store(out + 4 * N + i, tl.umulhi(x.to(tl.uint32, bitcast=True), y.to(tl.uint32, bitcast=True)).to(tl.int32))


def test_reads_and_writes_outside_of_a_tensor_are_at_fault():
    with Emulated():
        source, target = torch.rand(128), torch.zeros(128)
        copy[(1,)](source, target, 128)
        assert torch.equal(source, target)
        with pytest.raises(Fault, match="outside of every tensor"):
            copy[(1,)](source[:64].clone(), target, 128)
        with pytest.raises(Fault, match="outside of every tensor"):
            copy[(1,)](source, target[:64].clone(), 128)


def test_a_wait_that_never_ends_is_at_fault():
    flag = torch.ones(1, dtype=torch.int32)
    with Emulated():
        await_flag[(2,)](flag)
        with pytest.raises(Fault, match="every program waits"):
            await_flag[(2,)](flag.zero_())


def test_integers():
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-(2**31), 2**31, (128,), generator=generator, dtype=torch.int32)
    b = torch.randint(1, 2**15, (128,), generator=generator, dtype=torch.int32)
    out = torch.empty(6, 128, dtype=torch.int32)
    with Emulated():
        integers[(1,)](a, b, out, 128)
    high = (a.long() & 0xFFFFFFFF) * b.long() >> 32
    expected = [
        torch.div(a, b, rounding_mode="trunc"),
        torch.fmod(a, b),
        (a << 3) ^ (a >> 2) | (a & b),
        torch.minimum(a * b, a) - torch.maximum(a, -b),
        high.int(),
        a.max().expand(128),
    ]
    assert torch.equal(out, torch.stack(expected))
