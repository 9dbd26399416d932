"""Part of the ahead-of-time table of `bench/gpu/aot.py`: no spills, shared memory within its limits, wgmma."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import aot
from fastmoe_lora.backends import _plan

ROOT = Path(__file__).parents[3]
# A kernel compiled under TRITON_INTERPRET would not be compiled at all, so this runs beside whatever set it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    output = tmp_path_factory.mktemp("aot") / "table.json"
    script = ROOT / "bench" / "gpu" / "aot.py"
    command = [sys.executable, script, "--quick", "--arch", "sm_90", "gfx942", "--json", output]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return json.loads(output.read_text())["rows"]


def test_every_kernel_compiles_without_spills(rows):
    kernels = {"forward", "recompute", "grad_input", "grad_weight", "reduce"}
    for target in ("sm_90", "gfx942"):
        assert {row["kernel"] for row in rows if row["target"] == target} == kernels
    assert all(row["spills"] == 0 for row in rows)


def test_matrix_units_of_hopper_are_used_in_every_product(rows):
    products = [row for row in rows if row["target"] == "sm_90" and row["kernel"] != "reduce"]
    assert products
    assert all(row["wgmma"] > 0 for row in products)


@pytest.mark.parametrize(
    ("target", "threads", "registers", "programs"),
    [("sm_90", 256, 128, 2), ("sm_90", 128, 250, 2), ("gfx942", 256, 248, 2), ("gfx942", 512, 256, 1)],
)
def test_programs_have_to_fit_by_their_registers(target, threads, registers, programs):
    row = {"target": target, "kernel": "reduce", "spills": 0, "shared": 0, "threads": threads, "registers": registers}
    assert aot.fault(row | {"per_sm": programs}) is None
    assert f"of {programs + 1} programs" in aot.fault(row | {"per_sm": programs + 1})


@pytest.mark.parametrize("device", ["sm_80", "sm_86", "sm_90", "sm_100", "gfx942", "gfx90a", "interpreter"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("tokens", [1, 600, 5000, 10**6])
def test_the_table_has_a_plan_for_every_geometry(device, bits, tokens):
    odd = [
        _plan.Geometry(19, 21, 3, 5, 5, 25, routed=True, bits=bits),
        _plan.Geometry(768, 2304, 3, 6, 8, 24, routed=True, compact=True, bits=bits),
        _plan.Geometry(1024, 4096, 1, 16, 64, 1024, routed=True, dropout=True, bits=bits),
        _plan.Geometry(768, 768, 1, 2, 8, 16, routed=False, aligned=False, bits=bits),
    ]
    for geometry in odd:
        for kind in _plan.KINDS:
            plan = _plan.choose(kind, device, geometry, tokens)
            assert _plan.runs(kind, plan, geometry)
            assert not (plan.tma and not geometry.aligned)


def test_a_plan_with_a_wrong_tile_is_refused():
    with pytest.raises(ValueError, match="bn: got 96, expected a power of two"):
        _plan.Plan("queue", 64, 96, 64, 4, 3)
    with pytest.raises(ValueError, match="mode: got 'fast'"):
        _plan.Plan("fast", 64, 64, 64, 4, 3)
