"""The self-check of backend="auto" with compiled kernels, in the emulator: as they are, and made wrong on purpose."""

import re
import warnings
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from support.emulator import driver
from support.operator import Case, assert_right, run
from support.triton_backend import emulated_backend

from fastmoe_lora.backends import _flags, _plan, _self_check, _trial

pytest.importorskip("triton")

backends = import_module("fastmoe_lora.backends")  # the package's attribute of that name is a function

CASE = Case(tokens=20, in_features=32, out_features=64, splits=1, experts=2, max_rank=4)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTMOE_LORA_CACHE_DIR", str(tmp_path))
    with emulated_backend(monkeypatch) as emulated:
        monkeypatch.setattr(backends, "_resolve", lambda name, *_: "checked" if name == "auto" else name)
        _self_check._known.clear()
        yield emulated
        _self_check._known.clear()
    _flags.flags(64, torch.device("cpu")).zero_()


def without_first(pattern: str, kernel_name: str, patch: pytest.MonkeyPatch) -> None:
    """In the code of that kernel the first instruction that matches does nothing."""
    compiled = driver.compiled

    def changed(hash: str, name: str):
        kernel, code = compiled(hash, name)
        if name != kernel_name:
            return kernel, code
        lost = next(step for step in code if re.match(pattern, step.text.lstrip("@!%p0123456789 ")))
        return kernel, [replace(step, run=lambda warp, mask: None) if step is lost else step for step in code]

    patch.setattr(driver, "compiled", changed)


def test_right_plans_are_used(gpu):
    arguments = CASE.arguments(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        checked = run(arguments, "auto")
    tried = len(gpu.launched)
    by_name = run(arguments, "triton")
    once = len(gpu.launched) - tried
    assert tried == 3 * once  # two launches of each on trial
    assert all(torch.equal(checked[name], value) for name, value in by_name.items())
    _self_check._known.clear()  # another process, which knows from the disk
    run(arguments, "auto")
    assert len(gpu.launched) == tried + 2 * once


@pytest.mark.parametrize(
    ("kernel", "lost", "words"),
    [
        ("forward", r"cp\.async\.bulk\.tensor.*global\.shared", "forward, Plan.*y: not finite"),
        ("grad_input", r"cp\.async\.bulk\.tensor.*global\.shared", "backward, Plan.*gradient of x: not finite"),
        ("grad_weight", r"st\.global", "backward, Plan.*gradient of .*not finite"),
        ("forward", r"ex2\.approx", "forward, Plan.*y: error"),
        ("forward", r"bar\.sync", "forward, Plan.*Fault: "),
    ],
)
def test_a_plan_made_wrong_gives_way_to_packed(kernel, lost, words, gpu, monkeypatch):
    without_first(lost, kernel, monkeypatch)
    monkeypatch.setattr(_trial, "DRAWS", 2)  # of what is off, but finite; the emulator takes its time
    with pytest.warns(RuntimeWarning, match=f"{words}.*using 'packed'"):
        assert_right(CASE, "auto", torch.bfloat16)
    if kernel == "forward":
        arguments = CASE.arguments(torch.bfloat16)
        assert torch.equal(run(arguments, "auto")["y"], run(arguments, "packed")["y"])


def test_a_plan_that_the_device_cannot_run_gives_way_to_packed(gpu, monkeypatch):
    choose = _plan.choose

    def another(kind, device, geometry, tokens):  # that is not loaded yet
        plan = choose(kind, device, geometry, tokens)
        return replace(plan, group=3) if kind == "forward" else plan

    monkeypatch.setattr(_plan, "choose", another)
    monkeypatch.setattr("triton.compiler.compiler.max_shared_mem", lambda device: 1024)
    with pytest.warns(RuntimeWarning, match=r"forward, Plan\(.*group=3.*OutOfResources: .*using 'packed'"):
        y = run(CASE.arguments(torch.bfloat16), "auto")["y"]
    assert torch.equal(y, run(CASE.arguments(torch.bfloat16), "packed")["y"])
