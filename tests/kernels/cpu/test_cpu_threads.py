"""Threads, repetition, and the registered operator on the compiled backend."""

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.operator import DIFFERENTIABLE, Case, assert_right, run

from fastmoe_lora import RAMoELinear, ramoe_linear
from fastmoe_lora.backends import cpu
from fastmoe_lora.ops import ramoe_forward

CASE = Case(tokens=130, in_features=160, out_features=384, experts=6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 40, 130])  # fewer blocks of rows than threads, about as many, more
def test_right_under_any_number_of_threads(threads, dtype, tokens):
    case = Case(tokens=tokens, in_features=256, out_features=9600, experts=2)
    assert_right(case, "cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_same_bits_at_a_given_number_of_threads(threads, dtype):
    arguments = CASE.arguments(dtype)
    first, second = (run(arguments, "cpu") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_called_from_several_threads_at_once():
    arguments = {
        name: value.detach() if torch.is_tensor(value) else value
        for name, value in CASE.arguments(torch.bfloat16).items()
    }
    want = ramoe_linear(**arguments, backend="cpu")
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: ramoe_linear(**arguments, backend="cpu"), range(16)):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("case", [Case(), Case(routed=False, bias=False), Case(compacted=True, experts=6)], ids=str)
def test_opcheck(case):
    arguments = case.arguments(torch.float32)
    inputs = [arguments.get(name) for name in DIFFERENTIABLE]
    torch.library.opcheck(ramoe_forward, (*inputs, arguments["columns"], 0, 1.0, 0.0, None, "cpu"))


def test_compiles_as_one_graph():
    layer = RAMoELinear(24, 36, num_experts=3, splits=3, backend="cpu")
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(7, 24)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_only_what_is_asked_for_is_computed():
    arguments = CASE.arguments(torch.float32)
    everything = run(arguments, "cpu")
    for name in DIFFERENTIABLE:
        leaf = arguments.get(name)
        if leaf is None:
            continue
        for other in DIFFERENTIABLE:
            if arguments.get(other) is not None:
                arguments[other].requires_grad_(other == name)
        assert torch.equal(run(arguments, "cpu")[name], everything[name]), name


def test_bad_input_is_named():
    arguments = CASE.arguments(torch.float64)
    with pytest.raises(TypeError, match=r"x: got torch\.float64"):
        ramoe_linear(**arguments, backend="cpu")


def test_autocast_rounds_the_weight_when_it_is_packed():
    layer = RAMoELinear.from_linear(torch.nn.Linear(64, 192), num_experts=6, splits=3, backend="cpu")
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(9, 64, requires_grad=True)
    outcomes = []
    for backend in ("cpu", "packed"):
        layer.backend = backend
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        outcomes.append([y.double(), *(g.double() for g in torch.autograd.grad(y.sum(), [x, layer.lora_A]))])
    for got, want in zip(*outcomes, strict=True):
        assert (got - want).norm() <= 2**-7 * want.norm()  # one step of bfloat16


def before_a_guard_page(values: torch.Tensor) -> torch.Tensor:
    """A copy that ends where readable memory ends: to read one byte more is a segmentation fault."""
    page, size = mmap.PAGESIZE, values.nbytes
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + whole), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=whole - size).view_as(values)
    return copy.copy_(values)


@pytest.mark.parametrize("tokens", [16, 33, 64])
@pytest.mark.parametrize("width", [64, 70])
def test_reads_nothing_behind_its_operands(tokens, width):
    """AMX reads whole tiles, which no sanitizer sees."""
    arguments = Case(tokens=tokens, in_features=width, out_features=3 * width).arguments(torch.bfloat16)
    want = run(arguments, "cpu")
    guarded = dict(arguments)
    for name in ("x", "weight", "lora_A", "lora_B", "router_weight"):
        guarded[name] = before_a_guard_page(arguments[name].detach()).requires_grad_()
    for name, value in run(guarded, "cpu").items():
        assert torch.equal(value, want[name]), name
    grad = torch.randn(tokens, 3 * width).bfloat16()
    weight = arguments["weight"].detach()
    assert torch.equal(cpu.linear_backward(before_a_guard_page(grad), weight), cpu.linear_backward(grad, weight))
