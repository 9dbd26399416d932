"""The Triton backend without a GPU: tensors on the CPU count as tensors on one."""

from importlib import import_module

import pytest

from fastmoe_lora.backends import _plan, triton

from .emulator import Emulated

backends = import_module("fastmoe_lora.backends")  # the package's attribute of that name is a function


def pretend(patch: pytest.MonkeyPatch, device: str = "sm_90", multiprocessors: int = 3) -> None:
    """As long as `patch` lasts, backend "triton" takes CPU tensors to be on `device`."""
    # Launchers know compilations by torch's device, which is always the CPU here.
    for launchers in (
        triton._forward_launchers, triton._grad_input_launchers, triton._grad_weight_launcher, triton._reduce_launcher,
    ):  # fmt: skip
        launchers.cache_clear()
    patch.setattr(backends, "_resolve", lambda name, device_type, dtype: name)
    patch.setattr(triton, "check", lambda x: None)
    patch.setattr(triton, "device_name", lambda _: device)
    patch.setattr(triton, "multiprocessors", lambda _: multiprocessors)


def emulated_backend(
    patch: pytest.MonkeyPatch, device: str = "sm_90", plan_for: int = 4096, multiprocessors: int = 3, **options
) -> Emulated:
    """`pretend`, with a GPU to enter that runs what is launched. options: of `Emulated`.

    Problems are done as `plan_for` tokens would be, whatever their own number: small ones would get small tiles.
    """
    pretend(patch, device, multiprocessors)
    choose = _plan.choose
    patch.setattr(_plan, "choose", lambda kind, device, geometry, tokens: choose(kind, device, geometry, plan_for))
    return Emulated(int(device.removeprefix("sm_")), **options)
