"""Compiles every Triton kernel with every plan of the table ahead of time, without a GPU and without torch.

    python bench/gpu/aot.py [--arch sm_90 ...] [--quick] [--jobs 2] [--json FILE]

Prints registers, spilled bytes, shared memory and matrix instructions of each, and fails where a plan spills, asks for
more programs per multiprocessor than its shared memory and registers have room for, or, on sm_90, has a product that
does not use wgmma. Needs triton alone: the kernels and the plan table are loaded by path.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
KB = 1024
# Target, section of the plan table, shared memory of a multiprocessor's programs, as the vendors' programming guides
# give them. On NVIDIA each program but the first takes another KB, and they share 65,536 registers; on AMD a program's
# waves of 64 threads share four processors, each with 512 registers for every thread of a wave.
TARGETS = {
    "sm_80": ("sm_80", 163 * KB),
    "sm_86": ("small", 99 * KB),
    "sm_90": ("sm_90", 227 * KB),
    "sm_100": ("sm_100", 227 * KB),
    "gfx942": ("gfx942", 64 * KB),
}


def load(name: str, path: Path, package: bool = False):
    """The module or package at `path` under the name `name`, wherever it lies."""
    places = [str(path.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


planning = load("ramoe_plans", ROOT / "fastmoe_lora" / "backends" / "_plan.py")
Geometry = planning.Geometry

QKV = Geometry(768, 2304, 3, 6, 8, 48, routed=True, ranks=True)
PROJ = Geometry(768, 768, 1, 2, 8, 16, routed=True, ranks=True)
GEOMETRIES = {
    "qkv": QKV,
    "proj": PROJ,
    "qkv compacted": QKV._replace(columns=24, compact=True),
    "qkv masters": QKV._replace(master=True),
    "qkv dropout": QKV._replace(master=True, dropout=True),
    "four splits": QKV._replace(n=3072, splits=4),
    "qkv top-k": QKV._replace(top_k=True),
    "gates given": QKV._replace(routed=False, ranks=False),
    "rank 64": Geometry(1024, 1024, 1, 6, 64, 384, routed=True, top_k=True),
    "odd": Geometry(100, 75, 3, 5, 5, 25, routed=True, ranks=True, dropout=True),
    "qkv fp32": QKV._replace(bits=32),
    "odd fp32": Geometry(100, 75, 3, 16, 7, 112, routed=True, bits=32),
}
QUICK = ("qkv",)


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel of kernels/triton with a plan (None: its own fixed sizes) for a geometry."""

    target: str
    kernel: str
    geometry_name: str
    plan: object
    phases: tuple[tuple[str, bool], ...] = ()

    @property
    def geometry(self):
        return GEOMETRIES[self.geometry_name]

    @property
    def label(self) -> str:
        plan = self.plan
        if plan is None:
            return "-"
        phases = "" if len(dict(self.phases)) == 0 or all(dict(self.phases).values()) else "/half"
        extra = "".join(f"+{name}" for name in ("tma", "merge", "flatten") if getattr(plan, name))
        return f"{plan.mode}{phases} {plan.bm}x{plan.bn}x{plan.bk} w{plan.warps} s{plan.stages}{extra}"


def cases(target: str, quick: bool) -> list[Case]:
    """Every kernel x plan x geometry that the plan table can lead to on `target`; `quick`: some, of each kernel."""
    section, _ = TARGETS[target]
    found: dict[Case, None] = {}
    for name, geometry in GEOMETRIES.items():
        if quick and name not in QUICK:
            continue
        for kind, rows in planning.table()[section].items():
            served = [
                row
                for row in rows
                if planning.serves(row, geometry) and planning.runs(kind, planning.plan_of(row), geometry)
            ]
            for row in served[-1:] if quick and kind != "forward" else served:
                plan = planning.fit(kind, planning.plan_of(row), geometry)
                if kind == "grad_weight":
                    found[Case(target, "grad_weight", name, plan)] = None
                elif plan.mode == "recompute":
                    found[Case(target, "recompute", name, plan)] = None
                else:
                    for phases in planning.launches(plan):
                        found[Case(target, kind, name, plan, tuple(phases.items()))] = None
        found[Case(target, "reduce", name, None)] = None
    return list(found)


def signature(case: Case) -> tuple[dict[str, str], dict[str, object], dict[str, int]]:
    """Types of the kernel's arguments, values of its constants, launch options."""
    geometry, plan = case.geometry, case.plan
    value = "*fp32" if geometry.bits == 32 else "*bf16"
    adapter = "*fp32" if geometry.master else value
    types = dict.fromkeys(("x", "grad_y", "weight", "bias", "y", "dx", "low_rank", "t", "ds"), value)
    types |= dict.fromkeys(("lora_a", "lora_b", "da", "db"), adapter)
    types |= dict.fromkeys(("diag", "gates", "ddiag", "partial_a", "partial_b", "partial_d"), "*fp32")
    types |= dict.fromkeys(("M", "top_k", "threshold", "parts", "blocks", "flags"), "i32") | {"flags": "*i32"}
    types |= dict.fromkeys(("scaling", "keep_scale"), "fp32")
    types |= {"router": adapter, "drouter": adapter} if geometry.routed else {"dgates": "*fp32"}
    types |= {"columns": "*i32"} if geometry.compact else {}
    types |= {"seed": "*i64"} if geometry.dropout else {}
    types |= {"packed": value} if geometry.packed else {}
    options = {"num_warps": 4}
    if plan is None:
        return types, planning.reduce_constants(geometry), options
    options = plan.options
    constants = {
        "forward": planning.forward_constants,
        "recompute": planning.forward_constants,
        "grad_input": planning.grad_input_constants,
        "grad_weight": planning.grad_weight_constants,
    }[case.kernel](geometry, plan)
    if plan.tma:
        dtype = value[1:]
        types["x"] = types["grad_y"] = f"tensordesc<{dtype}[{plan.bm},{plan.bk}]>"
        rows, columns = (plan.bn, plan.bk) if case.kernel == "forward" else (plan.bk, plan.bn)
        types["weight"] = f"tensordesc<{dtype}[{rows},{columns}]>"
        types["y"] = types["dx"] = f"tensordesc<{dtype}[{plan.bm},{plan.bn // 2}]>"
    return types, constants | dict(case.phases), options


def compile_case(case: Case) -> dict[str, object]:
    """One line of the table."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "ramoe_kernels" not in sys.modules:
        load("ramoe_kernels", ROOT / "kernels" / "triton" / "__init__.py", package=True)
    module = importlib.import_module(f"ramoe_kernels.{case.kernel}")
    kernel = getattr(module, case.kernel)
    types, constants, options = signature(case)
    names = kernel.arg_names
    full = {name: types.get(name, "constexpr") if name not in constants else "constexpr" for name in names}
    values = {name: constants.get(name) for name in names if full[name] == "constexpr"}
    amd = case.target.startswith("gfx")
    target = GPUTarget("hip", case.target, 64) if amd else GPUTarget("cuda", int(case.target.removeprefix("sm_")), 32)
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))  # the kernels ask for it
    # What the launcher finds at run time: allocations of torch are aligned to 16 bytes and more; and, where AMD's
    # compiler asks, hardly one is larger than 2 GB.
    found = [["tt.divisibility", 16]] + [["tt.pointer_range", 32]] * amd
    attributes = {(i,): found for i, name in enumerate(names) if full[name].startswith("*")}
    started = time.perf_counter()
    row = {"target": case.target, "kernel": case.kernel, "geometry": case.geometry_name, "plan": case.label}
    try:
        compiled = triton.compile(ASTSource(kernel, full, values, attributes), target=target, options=options)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    row |= {"threads": target.warp_size * options["num_warps"], "per_sm": case.plan.per_sm if case.plan else 1}
    row |= _amd_usage(compiled.asm["amdgcn"]) if amd else _nvidia_usage(compiled)
    return row | {"shared": compiled.metadata.shared, "seconds": round(time.perf_counter() - started, 1)}


def _nvidia_usage(compiled) -> dict[str, int]:
    """Stack bytes of the machine code stand for spills: the kernels have no arrays of their own and call nothing."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}
    ptx = compiled.asm["ptx"]
    return {
        "registers": numbers["REG"],
        "spills": numbers["STACK"] + numbers["LOCAL"],
        "matrix": len(re.findall(r"wgmma\.mma_async|tcgen05\.mma|\bmma\.sync", ptx)),
        "wgmma": ptx.count("wgmma.mma_async"),
    }


def _amd_usage(assembly: str) -> dict[str, int]:
    count = {name: int(value) for name, value in re.findall(r"\.(\w+_count): +(\d+)", assembly)}
    return {
        "registers": count["vgpr_count"],
        "spills": count["vgpr_spill_count"],
        "matrix": len(re.findall(r"v_mfma", assembly)),
        "wgmma": 0,
    }


def fault(row: dict[str, object]) -> str | None:
    """What is wrong with a line of the table, None if nothing."""
    if "error" in row:
        return str(row["error"])
    limit, programs = TARGETS[row["target"]][1], row["per_sm"]
    if row["spills"]:
        return f"spills {row['spills']} bytes"
    nvidia = row["target"].startswith("sm_")
    shared = programs * row["shared"] + (programs - 1) * KB * nvidia
    if shared > limit:
        return f"shared memory of {programs} programs {shared} > {limit}"
    registers = -(-row["registers"] // 8) * 8  # of a thread
    if nvidia and programs * row["threads"] * registers > 65536:
        return f"registers of {programs} programs {programs * row['threads'] * registers} > 65536"
    waves = programs * row["threads"] // 64
    if not nvidia and waves > 4 * (512 // registers):
        return f"waves of {programs} programs {waves} > {4 * (512 // registers)}"
    has_product = row["kernel"] != "reduce"
    if row["target"] == "sm_90" and has_product and GEOMETRIES[row["geometry"]].bits == 16 and not row["wgmma"]:
        return "no wgmma"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--quick", action="store_true", help="a part of the table that names each kernel")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the table there")
    arguments = parser.parse_args()
    import triton

    todo = [case for target in arguments.arch for case in cases(target, arguments.quick)]
    print(f"triton {triton.__version__}: {len(todo)} kernels", flush=True)
    rows, bad = [], 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(compile_case, todo):
            row["fault"] = fault(row)
            bad += row["fault"] is not None
            rows.append(row)
            print(
                f"{row['target']:7} {row['kernel']:12} {row['geometry']:14} {row['plan']:44}"
                f" reg {row.get('registers', '-'):>4} spill {row.get('spills', '-'):>4}"
                f" shared {row.get('shared', '-'):>7}"
                f" mma {row.get('matrix', '-'):>4} wgmma {row.get('wgmma', '-'):>3} {row['fault'] or ''}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} compiled, {bad} at fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
