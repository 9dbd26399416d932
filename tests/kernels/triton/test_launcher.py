"""What is launched, seen by a driver that has no device: real compilations for sm_90 that are never run."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support.emulator.driver import driver_without_device
from support.operator import Case
from support.triton_backend import pretend

from fastmoe_lora.backends import _launch, _plan, triton

AsyncCompileMode = pytest.importorskip("triton").AsyncCompileMode

CASE = Case(tokens=600, in_features=768, out_features=2304, experts=6)
ARGUMENTS = ("x", "weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight", "columns")
NEEDS = [True, False, False, True, True, True, False, True]
LAUNCHED = []  # (function, programs, arguments); of the module, since Triton keeps what it has compiled


def _launcher(source, metadata):
    def launch(x, y, z, stream, function, packed, launch_metadata, on_enter, on_exit, *arguments):
        LAUNCHED.append((function, (x, y, z), [_kind(argument) for argument in arguments]))

    return launch


@pytest.fixture
def launches(monkeypatch):
    """What the test has launched so far."""
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", driver_without_device(_launcher, capability=90, number=0))
    pretend(monkeypatch, "sm_90", multiprocessors=132)
    LAUNCHED.clear()
    return LAUNCHED


def _kind(argument):
    """The argument, of a tensor or a descriptor all but the address."""
    tensor = getattr(argument, "base", argument)
    if not torch.is_tensor(tensor):
        return argument
    return type(argument).__name__, tensor.dtype, tensor.shape, tensor.stride()


def both_passes(case: Case, dtype=torch.bfloat16, adapter_dtype=None, bias=None) -> None:
    arguments = case.arguments(dtype, adapter_dtype)
    detached = {name: v.detach() if torch.is_tensor(v) else v for name, v in arguments.items()}
    if bias is not None:
        detached["bias"] = bias
    operands = [detached.get(name) for name in ARGUMENTS]
    y, low_rank, gates = triton.forward(*operands, 0, 1, case.dropout, detached["seed"])
    x, weight, _, lora_a, lora_b, diag, _, router, columns = operands
    operands = torch.zeros_like(y), x, weight, lora_a, lora_b, diag, gates, router, columns, low_rank
    triton.backward(*operands, 1, case.dropout, detached["seed"], NEEDS)


@pytest.mark.parametrize(
    "case", [CASE, Case(tokens=5000, in_features=768, out_features=768, splits=1, experts=2, dropout=0.1)], ids=str
)
def test_the_second_call_launches_what_the_first_one_did(case, launches):
    both_passes(case)
    first = launches.copy()
    launches.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triton.runtime.jit.JITFunction.run", None)  # nobody calls it again
        both_passes(case)
    assert launches == first
    assert len(launches) == 4 + (case.dropout > 0)  # forward, grad_input (twice with dropout), grad_weight, reduce


def test_types_and_missing_arguments_have_compilations_of_their_own(launches):
    case = Case(tokens=100, in_features=256, out_features=256, splits=1, experts=2)
    functions = set()
    for changes in ({}, {"dtype": torch.float16}, {"adapter_dtype": torch.float32}):
        both_passes(case, **changes)
        functions |= {function for function, _, _ in launches}
    assert len(functions) == 4 + 4 + 3  # `grad_weight` sees no adapter
    launches.clear()
    both_passes(replace(case, bias=False))
    new = {function for function, _, _ in launches} - functions
    assert len(new) == 1  # `forward`


def test_a_small_tensor_that_is_not_aligned_costs_the_short_way_alone(launches):
    case = Case(tokens=5000, in_features=256, out_features=256, splits=1, experts=2)
    both_passes(case)
    (launcher,) = _forward_launchers(case)
    known, (aligned, *_) = launcher.compiled.copy(), launches
    launches.clear()
    both_passes(case, bias=torch.zeros(257, dtype=torch.bfloat16)[1:])
    unaligned = launches[0]
    assert unaligned[0] != aligned[0]
    assert unaligned[2][0][0] == aligned[2][0][0] == "TensorDescriptor"
    assert launcher.compiled == known


def test_on_amd_a_tensor_of_more_than_2_gb_is_left_to_triton(launches, monkeypatch):
    monkeypatch.setattr(_launch, "HIP", True)
    case = Case(tokens=100, in_features=320, out_features=256, splits=1, experts=2)
    both_passes(case, bias=torch.empty(2**30, dtype=torch.bfloat16)[:256])
    (launcher,) = _forward_launchers(case)
    assert not launcher.compiled
    both_passes(case)
    assert launcher.compiled


def _forward_launchers(case):
    geometry = _plan.Geometry(case.in_features, 256, 1, 2, 8, 16, routed=True, ranks=True)
    return triton._forward_launchers(geometry, _plan.choose("forward", "sm_90", geometry, case.tokens))


def test_what_was_first_launched_while_it_was_compiled_elsewhere_is_launched_again(launches):
    case = Case(tokens=100, in_features=512, out_features=256, splits=1, experts=2)
    with ThreadPoolExecutor(1) as executor, AsyncCompileMode(executor):
        both_passes(case)
    first = launches.copy()
    launches.clear()
    both_passes(case)
    assert launches == first
