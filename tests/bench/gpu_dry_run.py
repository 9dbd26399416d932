"""Parts of `bench.gpu.check` without a GPU: in Triton's interpreter, on few rows. Run by test_gpu_check.py.

Argument: the folder where they leave their lines.
"""

import sys
from importlib import import_module
from pathlib import Path

import torch
import triton.testing

from bench.gpu import correctness
from bench.gpu.log import Log

backends = import_module("fastmoe_lora.backends")  # the package's attribute of that name is a function
ROWS = 24
correctness.DTYPE = torch.float16  # the interpreter multiplies bfloat16 wrongly
correctness.QKV.update(in_features=32, out_features=64, splits=1, experts=2)
for _name in ("do_bench", "do_bench_cudagraph"):
    setattr(triton.testing, _name, lambda function, **_: (function(), 1.0)[1])

from bench.gpu import integration, plan_search, timings  # noqa: E402 - they take over what is set above
from bench.harness.problem import Problem  # noqa: E402


def shrink() -> None:
    all_plans = plan_search.plans
    plan_search.plans = lambda kind: [plan for plan in all_plans(kind) if plan.bm == plan.bn == 64][:1]
    plan_search.PROBLEMS = {"compacted": {"experts": 2}}
    plan_search.CHECKED_TOKENS, plan_search.TOKENS = ROWS, (2 * ROWS, ROWS)
    integration.LONG, integration.TOKENS = 2**10, (ROWS,)
    resolve = backends._resolve
    backends._resolve = lambda name, *rest: "checked" if name == "auto" else resolve(name, *rest)
    timings.TOKENS, timings.RIVALS = (ROWS,), ("three-gemm", "concat-k")
    timings.qkv = timings.proj = lambda tokens: Problem("small", ROWS, 32, 32, E=2)
    timings.host_time = lambda function: (function(), 1.0)[1]
    timings.memory = dict  # asks the GPU
    timings.interleaved = lambda functions, *_, **__: ({name: [f(), 1.0][1:] for name, f in functions.items()}, {})


def main(folder: Path) -> None:
    shrink()
    for module, part in ((plan_search, "candidates"), (plan_search, "search"), (timings, "timings")):
        module.prepare(folder)
        getattr(module, part)(Log(folder, part, 0), 0, 1)
    timings.host(Log(folder, "host", 0), 0, 1)
    timings.rivals(Log(folder, "rivals", 0), 0, 1)
    Log(folder, "integration", 0).item("long rows", integration.long_rows)
    Log(folder, "integration", 0).item("auto", integration.self_check)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
