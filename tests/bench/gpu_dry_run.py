"""Parts of `bench.gpu_check` without a GPU: in Triton's interpreter, on few rows. Run by test_gpu_check.py.

Argument: the folder where they leave their lines.
"""

import sys
from importlib import import_module
from pathlib import Path

import torch
import triton.testing

from bench import gpu_items

backends = import_module("fastmoe_lora.backends")  # the package's attribute of that name is a function
ROWS = 24
gpu_items.DTYPE = torch.float16  # the interpreter multiplies bfloat16 wrongly
gpu_items.QKV.update(in_features=32, out_features=64, splits=1, experts=2)
for _name in ("do_bench", "do_bench_cudagraph"):
    setattr(triton.testing, _name, lambda function, **_: (function(), 1.0)[1])

from bench import gpu_integration, gpu_search, gpu_timings  # noqa: E402 - they take over what is set above
from bench.problem import Problem  # noqa: E402


def shrink() -> None:
    all_plans = gpu_search.plans
    gpu_search.plans = lambda kind: [plan for plan in all_plans(kind) if plan.bm == plan.bn == 64][:1]
    gpu_search.PROBLEMS = {"compacted": {"experts": 2}}
    gpu_search.CHECKED_TOKENS, gpu_search.TOKENS = ROWS, (2 * ROWS, ROWS)
    gpu_integration.LONG, gpu_integration.TOKENS = 2**10, (ROWS,)
    resolve = backends._resolve
    backends._resolve = lambda name, *rest: "checked" if name == "auto" else resolve(name, *rest)
    gpu_timings.TOKENS, gpu_timings.RIVALS = (ROWS,), ("three-gemm", "concat-k")
    gpu_timings.qkv = gpu_timings.proj = lambda tokens: Problem("small", ROWS, 32, 32, E=2)
    gpu_timings.host_time = lambda function: (function(), 1.0)[1]
    gpu_timings.memory = dict  # asks the GPU
    gpu_timings.interleaved = lambda functions, *_, **__: ({name: [f(), 1.0][1:] for name, f in functions.items()}, {})


def main(folder: Path) -> None:
    shrink()
    for module, part in ((gpu_search, "candidates"), (gpu_search, "search"), (gpu_timings, "timings")):
        module.prepare(folder)
        getattr(module, part)(gpu_items.Log(folder, part, 0), 0, 1)
    gpu_timings.host(gpu_items.Log(folder, "host", 0), 0, 1)
    gpu_timings.rivals(gpu_items.Log(folder, "rivals", 0), 0, 1)
    gpu_items.Log(folder, "integration", 0).item("long rows", gpu_integration.long_rows)
    gpu_items.Log(folder, "integration", 0).item("auto", gpu_integration.self_check)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
