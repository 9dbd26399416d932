"""What the compiler makes of the kernels, with the plans that ship, in the emulator: bfloat16, TMA, wgmma, queue."""

from dataclasses import dataclass, replace

import pytest
import torch
from support.operator import Case, assert_right
from support.triton_backend import emulated_backend

pytest.importorskip("triton")

QKV = Case(tokens=150, in_features=128, out_features=768, experts=6)
PROJ = replace(QKV, splits=1, experts=2, out_features=256)
KERNELS = ["forward", "grad_input", "grad_weight", "reduce"]


@dataclass(frozen=True)
class Run:
    """A problem, as `plan_for` tokens would be done on `device`: small problems would get small tiles otherwise."""

    case: Case
    device: str = "sm_90"
    plan_for: int = 4096
    dtype: torch.dtype = torch.bfloat16
    masters: bool = False

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.") + "-masters" * self.masters
        return f"{self.device}-like-M{self.plan_for}-{kind}-{self.case}"


RUNS = (
    Run(QKV),
    Run(QKV, masters=True),
    Run(replace(QKV, compacted=True)),
    Run(replace(QKV, dropout=0.2)),
    Run(replace(QKV, routed=False, ready_diagonal=True), dtype=torch.float16),
    Run(replace(QKV, top_k=2)),
    Run(PROJ),
    Run(replace(PROJ, max_rank=64)),  # more columns than a block
    Run(replace(QKV, splits=1, out_features=104, in_features=72)),  # TMA past every edge
    Run(replace(QKV, in_features=50, out_features=75, max_rank=5, dropout=0.2)),  # no TMA
    Run(QKV, plan_for=1000),
    Run(replace(QKV, compacted=True, top_k=2), plan_for=1000),
    Run(QKV, plan_for=200),
    Run(replace(QKV, tokens=1), plan_for=1),
    Run(replace(PROJ, tokens=40, in_features=40, out_features=48), dtype=torch.float32),
    Run(QKV, device="sm_80"),
    Run(replace(QKV, dropout=0.2, compacted=True), device="sm_80", dtype=torch.float16),
    Run(PROJ, device="sm_86", plan_for=200),
)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_compiled_kernels_are_right(run, monkeypatch):
    with emulated_backend(monkeypatch, run.device, run.plan_for) as gpu:
        assert_right(run.case, "triton", run.dtype, adapter_dtype=torch.float32 if run.masters else None)
    assert [name.replace("recompute", "forward") for name in dict.fromkeys(gpu.launched)] == KERNELS
