"""Parts of `bench.gpu_check` that ask whether the Triton backend is right on this GPU."""

import faulthandler
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
ITEM_SECONDS = 40.0  # compilation included
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = ("x", "weight", "bias", "lora_A", "lora_B", "diag", "gates", "router_weight")


class Log:
    """A file of JSON lines: an item is noted when it starts and when it is done, so that one that kills us is known."""

    def __init__(self, folder: Path, part: str, shard: int):
        self.folder = folder
        self.path = folder / f"{part}.{shard}.jsonl"

    def read(self) -> list[dict]:
        """One row per item that was started; those without a result count as hung or crashed."""
        rows: dict[str, dict] = {}
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                rows[row["item"]] = row
        unfinished = {"ok": False, "error": "did not finish: hung, crashed or out of time"}
        return [row if row["state"] == "done" else row | unfinished for row in rows.values()]

    def item(self, name: str, function: Callable[[], dict], seconds: float = ITEM_SECONDS) -> None:
        """Runs `function` unless an earlier process tried; its result, or its exception, becomes the item's row.

        Ends the process if it takes longer: a thread of C does that, whatever the driver call that Python is stuck in.
        """
        if name in {row["item"] for row in self.read()}:
            return
        self._write({"item": name, "state": "start"})
        faulthandler.dump_traceback_later(seconds, exit=True)
        began = time.perf_counter()
        try:
            result = {"ok": True} | function()
        except Exception as error:
            lines = str(error).strip().splitlines()
            result = {"ok": False, "error": f"{type(error).__name__}: {' | '.join(lines[:3])[:400]}"}
        faulthandler.cancel_dump_traceback_later()
        self._write({"item": name, "state": "done"} | result | {"seconds": round(time.perf_counter() - began, 1)})

    def _write(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def prepare(folder: Path) -> None:
    """Takes over what earlier parts of the run found: the plan table, and whether the one-launch form hangs here."""
    from fastmoe_lora.backends import _plan

    sys.path.insert(0, str(ROOT / "tests"))
    torch.manual_seed(0)
    found = folder / "plans.json"
    if found.is_file():
        searched = _plan.table(found)
        _plan._table = lambda: searched
    smoke_rows = [row for shard in range(3) for row in Log(folder, "smoke", shard).read()]
    if any(row["item"] == "queue" and not row["ok"] for row in smoke_rows):
        # The one-launch form does not work here: what follows is checked with the two phases in two launches.
        _plan.launches = lambda plan: ({"PRODUCE": True, "CONSUME": False}, {"PRODUCE": False, "CONSUME": True})


def share(items: list, shard: int, shards: int) -> Iterator:
    return iter(items[shard::shards])


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
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y.device, y.dtype)
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


def compare(case, dtype: torch.dtype, adapter_dtype: torch.dtype | None = None) -> dict:
    """A shape of tests/support/operator.py: Triton and plain torch in `dtype` against the reference in float64."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    exact = run(place(case.arguments(torch.float64)), "reference")
    got = run(place(case.arguments(dtype, adapter_dtype)), "triton")
    plain = run(place(case.arguments(dtype, adapter_dtype)), "reference")
    return errors(got, plain, exact, dtype.itemsize * 8)


def paper_case(tokens: int = 300, **changes):
    """The fused QKV of a ViT-B/16."""
    from support.operator import Case

    sizes = {"in_features": 768, "out_features": 2304, "splits": 3, "experts": 6, "max_rank": 8}
    return Case(tokens=tokens, **(sizes | changes))


def smoke(log: Log, shard: int, shards: int) -> None:
    """Each form of the forward once: the first that could hang, alone in its process."""
    from dataclasses import replace

    from fastmoe_lora.backends import _plan

    def of_mode(mode: str) -> dict:
        plan = _plan.Plan("queue", 64, 128, 64, 4, 3, group=2, per_sm=2)
        _plan.choose = lambda kind, device, geometry, tokens: _plan.fit(
            kind, replace(plan, mode=mode if kind == "forward" or mode != "recompute" else "two_launch"), geometry
        )
        return compare(paper_case(1000), torch.bfloat16)

    for mode in share(list(_plan.MODES), shard, shards):
        log.item(mode, lambda mode=mode: of_mode(mode))


def correctness(log: Log, shard: int, shards: int) -> None:
    """Every odd shape in every dtype, with the plans that this GPU gets; and the paper's shapes at several M."""
    from support.operator import CASES

    cases = [*CASES, paper_case(196), paper_case(4099, compacted=True), paper_case(3000, dropout=0.1)]
    items = [(case, name, None) for case in cases for name in DTYPES]
    items += [(paper_case(777), "bf16", torch.float32), (paper_case(777, compacted=True), "bf16", torch.float32)]
    for case, name, master in share(items, shard, shards):
        label = f"{case} {name}{' masters' if master else ''}"
        log.item(
            label, lambda case=case, name=name, master=master: compare(case, DTYPES[name], master) | {"show": False}
        )


def launches(log: Log, shard: int, shards: int) -> None:
    """Kernels per call, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    def count(case, limit_forward: int, limit_backward: int) -> dict:
        arguments = place(case.arguments(torch.bfloat16))
        for name in ("weight", "bias"):
            arguments[name].requires_grad_(False)
        run(arguments, "triton")
        found = {}
        from fastmoe_lora import ramoe_linear

        leaves = [value for value in arguments.values() if torch.is_tensor(value) and value.requires_grad]
        for direction in ("forward", "backward"):
            y = None if direction == "forward" else ramoe_linear(**arguments, backend="triton")
            grad = None if y is None else torch.randn_like(y)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                if y is None:
                    ramoe_linear(**arguments, backend="triton")
                else:
                    torch.autograd.grad(y, leaves, grad)
                torch.cuda.synchronize()
            events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
            found[direction] = [event.name[:40] for event in events]
        counts = {direction: len(names) for direction, names in found.items()}
        ok = counts["forward"] == limit_forward and 0 < counts["backward"] <= limit_backward
        return {"ok": ok, **counts, "kernels": found}

    for tokens in (256, 4096):
        log.item(f"QKV M {tokens}", lambda tokens=tokens: count(paper_case(tokens), 1, 4))
    log.item("QKV M 4096 with dropout", lambda: count(paper_case(4096, dropout=0.1), 1, 4))
    log.item("QKV M 4096 compacted", lambda: count(paper_case(4096, compacted=True), 1, 4))


def sanitizer(log: Log, shard: int, shards: int) -> None:
    """compute-sanitizer memcheck over a small forward and backward in each form."""

    def memcheck() -> dict:
        tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(tool).is_file():
            return {"skipped": "no compute-sanitizer here"}
        script = (
            "from pathlib import Path; from bench import gpu_items as g; import torch; g.prepare(Path('/nonexistent'));"
            "from support.operator import Case;"
            "print([g.compare(Case(tokens=70, experts=6, compacted=c), torch.bfloat16)['ok'] for c in (False, True)])"
        )
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", script]
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=55)
        tail = " ".join((result.stdout + result.stderr).split())[-200:]
        return {"ok": result.returncode == 0 and "ERROR SUMMARY: 0 errors" in tail, "tail": tail}

    log.item("memcheck", memcheck, 58)


def integration(log: Log, shard: int, shards: int) -> None:
    """What a user builds around the operator: see `bench.gpu_integration`."""
    from bench.gpu_integration import ITEMS

    for name, function in share(list(ITEMS.items()), shard, shards):
        log.item(name, function)
