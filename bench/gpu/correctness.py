"""Parts of `bench.gpu.check` that ask whether the Triton backend is right on this GPU."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu.log import DEVICE, Log, rows_of

ROOT = Path(__file__).resolve().parents[2]
DTYPE = torch.bfloat16  # of all that is timed
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QKV = {"in_features": 768, "out_features": 2304, "splits": 3, "experts": 6, "max_rank": 8}  # of a ViT-B/16
NAMES = ("x", "weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight")


def prepare(folder: Path) -> None:
    """Takes over what earlier parts of the run found: the plan table, and which forms of the kernels fail here."""
    from fastmoe_lora.backends import _plan

    sys.path.insert(0, str(ROOT / "tests"))
    torch.manual_seed(0)
    found = folder / "plans.json"
    if found.is_file():
        searched = _plan.table(found)
        _plan._table = lambda: searched
    failed = {row["item"] for row in rows_of(folder, "smoke") if not row["ok"]}
    if failed & {"queue", "flattened"}:
        _fall_back(two_launches="queue" in failed)


def _fall_back(two_launches: bool) -> None:
    """What follows is done, and what is found written, without flattened loops and, if need be, in two launches."""
    from fastmoe_lora.backends import _plan

    fit = _plan.fit

    def fit_what_works(kind: str, plan: _plan.Plan, geometry: _plan.Geometry) -> _plan.Plan:
        fitted = replace(fit(kind, plan, geometry), flatten=False)
        return replace(fitted, mode="two_launch") if two_launches and fitted.mode == "queue" else fitted

    _plan.fit = fit_what_works


def share(items: list, shard: int, shards: int) -> Iterator:
    return iter(items[shard::shards])


def poison() -> None:
    """Fills uninitialised memory with NaN from here on, so that an unwritten output shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def errors(got: dict[str, Tensor], plain: dict[str, Tensor], exact: dict[str, Tensor], bits: int) -> dict:
    """The rule of every test, against float64: fp32 relative error < 1e-5, 16 bits up to twice plain torch's error."""
    worst, where = 0.0, ""
    for name, want in exact.items():
        if not got[name].isfinite().all():
            return {"ok": False, "error": f"{name}: not finite"}
        error, norm = (got[name].double() - want).norm().item(), want.norm().item()
        bound = 1e-5 * norm if bits == 32 else 2 * (plain[name].double() - want).norm().item() + 1e-6
        if error > worst * max(bound, 1e-30):
            worst, where = error / max(bound, 1e-30), name
    return {"ok": worst <= 1, "error_over_bound": round(worst, 3), "of": where}


def run(arguments: dict, backend: str) -> dict[str, Tensor]:
    """Output and gradients by name."""
    from fastmoe_lora import ramoe_linear

    y = ramoe_linear(**arguments, backend=backend)
    generator = torch.Generator(device=y.device).manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64, device=y.device).bfloat16().to(y.dtype)
    leaves = {name: arguments.get(name) for name in NAMES}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    gradients = torch.autograd.grad(y, list(leaves.values()), grad)
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


def place(arguments: dict) -> dict:
    """The same leaves on the GPU."""
    return {
        name: value.detach().to(DEVICE).requires_grad_(value.requires_grad) if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }


def compare(case, dtype: torch.dtype, adapter_dtype: torch.dtype | None = None, draws: int = 1) -> dict:
    """A shape of tests/support/operator.py: Triton and plain torch in `dtype` against the reference in float64.

    draws: errors are those of so many draws together: of a gradient of two numbers, one draw says little.
    """
    poison()

    def results(backend: str, *dtypes: torch.dtype | None) -> dict[str, Tensor]:
        found = [run(place(case.arguments(*dtypes, seed=seed)), backend) for seed in range(draws)]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    exact = results("reference", torch.float64)
    got, plain = (results(backend, dtype, adapter_dtype) for backend in ("triton", "reference"))
    return errors(got, plain, exact, dtype.itemsize * 8)


def paper_case(tokens: int = 300, **changes):
    """The fused QKV, at any number of tokens."""
    from support.operator import Case

    return Case(tokens=tokens, **(QKV | changes))


def flattens() -> bool:
    """Whether some plan for this GPU has its loops flattened: not every compiler can."""
    from fastmoe_lora.backends import _launch, _plan

    section = _plan.architecture(_launch.device_name(DEVICE))
    return any(row.get("flatten") for row in _plan.table()[section]["forward"])


def smoke(log: Log, shard: int, shards: int) -> None:
    """Each form of the forward once, alone in its process: some could hang."""
    from fastmoe_lora.backends import _plan

    plan = _plan.Plan("queue", 64, 128, 64, 4, 3, group=2, per_sm=2)
    forms = {
        "queue": plan,
        "two_launch": replace(plan, mode="two_launch"),
        "recompute": replace(plan, mode="recompute"),
    }
    if flattens():
        forms["flattened"] = _plan.Plan("queue", 128, 256, 64, 8, 3, group=2, merge=True, tma=True, flatten=True)

    def of_form(form: _plan.Plan) -> dict:
        others = replace(form, mode="two_launch") if form.mode == "recompute" else form
        _plan.choose = lambda kind, device, geometry, tokens: _plan.fit(
            kind, form if kind == "forward" else others, geometry
        )
        return compare(paper_case(1000), DTYPE)

    for name in share(list(forms), shard, shards):
        log.item(name, lambda name=name: of_form(forms[name]))


def correctness(log: Log, shard: int, shards: int) -> None:
    """Every odd shape in every dtype, with the plans that this GPU gets; and the paper's shapes at several M."""
    from support.operator import CASES

    cases = [*CASES, paper_case(196), paper_case(4099, compacted=True), paper_case(3000, dropout=0.1)]
    items = [(case, name, None) for case in cases for name in DTYPES]
    items += [(paper_case(777), "bf16", torch.float32), (paper_case(777, compacted=True), "bf16", torch.float32)]
    for case, name, master in share(items, shard, shards):

        def check(case=case, name=name, master=master) -> dict:
            return compare(case, DTYPES[name], master, draws=16 if case in CASES else 1) | {"show": False}

        log.item(f"{case} {name}{' masters' if master else ''}", check)


def kernels(function: Callable[[], object]) -> list[str]:
    """Names of what runs on the GPU for one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    return [event.name[:40] for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def launches(log: Log, shard: int, shards: int) -> None:
    """Kernels per call, by the profiler."""
    from fastmoe_lora import ramoe_linear

    def count(case) -> dict:
        arguments = place(case.arguments(DTYPE))
        for name in ("weight", "bias"):
            arguments[name].requires_grad_(False)
        leaves = [value for value in arguments.values() if torch.is_tensor(value) and value.requires_grad]
        y = ramoe_linear(**arguments, backend="triton")
        grad = torch.randn_like(y)
        calls = {
            "forward": lambda: ramoe_linear(**arguments, backend="triton"),
            "backward": lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True),
        }
        for call in calls.values():  # compiles, and starts the profiler, which may miss what runs meanwhile
            call()
            kernels(call)
        found = {direction: kernels(call) for direction, call in calls.items()}
        counts = {direction: len(names) for direction, names in found.items()}
        return {"ok": counts["forward"] == 1 and 0 < counts["backward"] <= 4, **counts, "kernels": found}

    cases = {"M 256": paper_case(256), "M 4096": paper_case(4096)}
    cases["M 4096 with dropout"] = paper_case(4096, dropout=0.1)
    cases["M 4096 compacted"] = paper_case(4096, compacted=True)
    for name, case in cases.items():
        log.item(f"QKV {name}", lambda case=case: count(case))


MEMCHECKED = """
import pathlib, torch
from bench.gpu import correctness
correctness.prepare(pathlib.Path({folder!r}))
from support.operator import Case
for compacted in (False, True):
    assert correctness.compare(Case(tokens=70, experts=6, compacted=compacted), correctness.DTYPE)["ok"]
"""


def sanitizer(log: Log, shard: int, shards: int) -> None:
    """compute-sanitizer memcheck over a small forward and backward in each form."""

    def memcheck() -> dict:
        tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(tool).is_file():
            return {"skipped": "no compute-sanitizer here"}
        script = MEMCHECKED.format(folder=str(log.folder))
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", script]
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=115)
        lines = (result.stdout + result.stderr).strip().splitlines()
        ok = result.returncode == 0 and "ERROR SUMMARY: 0 errors" in result.stdout + result.stderr
        return {"ok": ok} | ({} if ok else {"output": lines[:20] + lines[-20:]})

    log.item("memcheck", memcheck, 118)
