"""What of `bench.gpu.check` needs no GPU: that no item can take the others along, and the rule of right."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import correctness, plan_search
from bench.gpu.check import Part, run_part, table
from bench.gpu.correctness import errors
from bench.gpu.log import Log, rows_of
from bench.gpu.plan_search import dump, plans
from fastmoe_lora.backends import _launch, _plan

ROOT = Path(__file__).parents[2]
ITEMS = """
import os, time, pathlib
from bench.gpu.log import Log
log = Log(pathlib.Path({folder!r}), "part", 0)
log.item("right", lambda: {{"ms": 2.5}})
log.item("raises", lambda: 1 / 0)
log.item("crashes", os.abort)
log.item("hangs", lambda: time.sleep(100), 0.2)
log.item("last", dict)
"""


def test_an_item_that_crashes_or_hangs_costs_itself_alone(tmp_path):
    command = [sys.executable, "-c", ITEMS.format(folder=str(tmp_path))]
    codes = [subprocess.run(command, cwd=ROOT, capture_output=True).returncode for _ in range(3)]
    assert codes[0] != 0
    assert codes[1] != 0
    assert codes[2] == 0
    rows = Log(tmp_path, "part", 0).read()
    verdicts = {row["item"]: row["ok"] for row in rows}
    assert verdicts == {"right": True, "raises": False, "crashes": False, "hangs": False, "last": True}
    assert "2 of 5 right" in table(Part("part", "correctness", 1).name, rows)


def test_a_part_that_cannot_start_ends_at_once(tmp_path):
    started = time.monotonic()
    assert run_part(Part("unknown", "correctness", 600, 2), tmp_path, started + 600) == []
    assert time.monotonic() - started < 60


def test_parts_in_the_interpreter(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "1", "FASTMOE_LORA_BACKEND": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(Path(__file__).with_name("gpu_dry_run.py")), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = {}
    for part in ("candidates", "search", "timings", "host", "rivals", "integration"):
        rows = rows_of(tmp_path, part)
        assert all(row["ok"] for row in rows), table(part, rows)
        counts[part] = len(rows)
    assert counts == {"candidates": 3, "search": 6, "timings": 4, "host": 6, "rivals": 3, "integration": 2}
    shipped, found = _plan.table(), _plan.table(tmp_path / "plans.json")
    for kind in _plan.KINDS:
        small, large, *rest = found["small"][kind]
        assert (small["m"], large.get("m")) == (48, None)
        assert small["dropout"] is large["dropout"] is False
        assert rest == shipped["small"][kind]


@pytest.mark.parametrize(("device", "flattened"), [("sm_90", True), ("sm_100", False), ("gfx942", False)])
def test_loops_are_tried_flattened_where_a_plan_is(device, flattened, tmp_path, monkeypatch):
    monkeypatch.setattr(_plan, "choose", _plan.choose)
    monkeypatch.setattr(_launch, "device_name", lambda _: device)
    monkeypatch.setattr(correctness, "compare", lambda *_: {})
    log = Log(tmp_path, "smoke", 0)
    correctness.smoke(log, 0, 1)
    tried = {row["item"] for row in log.read()}
    assert tried == {"queue", "two_launch", "recompute"} | ({"flattened"} if flattened else set())
    assert any(plan.flatten for *_, plan in plan_search.items()) == flattened


def test_what_spills_on_hopper_is_no_candidate():
    """Found by compiling every candidate for the searched problems as `bench/gpu/aot.py` does."""
    shapes = {
        kind: {(p.bm, p.bn, p.warps, p.stages, p.merge, p.tma) for p in plans(kind)}
        for kind in ("forward", "grad_input")
    }
    assert (128, 128, 8, 4, True, True) in shapes["forward"]
    assert (128, 128, 8, 4, True, False) not in shapes["forward"]
    assert (128, 256, 8, 4, True, False) not in shapes["forward"]
    assert (128, 128, 4, 3) not in {shape[:4] for shape in shapes["grad_input"]}


def test_where_a_form_fails_everything_goes_on_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_plan, "fit", _plan.fit)
    monkeypatch.syspath_prepend(str(ROOT))
    plan = _plan.Plan("queue", 64, 64, 64, 4, 3, flatten=True)
    geometry = _plan.Geometry(64, 64, 1, 2, 8, 16, routed=True)

    def form_after(item: str, ok: bool) -> tuple[str, bool]:
        Log(tmp_path, "smoke", 1).item(item, lambda: {"ok": ok})
        correctness.prepare(tmp_path)
        fitted = _plan.fit("forward", plan, geometry)
        return fitted.mode, fitted.flatten

    assert form_after("recompute", ok=False) == ("queue", True)
    assert form_after("flattened", ok=False) == ("queue", False)
    assert form_after("queue", ok=False) == ("two_launch", False)


def test_the_rule_of_right():
    exact = {"y": torch.ones(4, dtype=torch.float64)}
    plain = {"y": torch.full((4,), 1.01)}
    assert errors({"y": torch.full((4,), 1.015)}, plain, exact, bits=16)["ok"]
    assert not errors({"y": torch.full((4,), 1.03)}, plain, exact, bits=16)["ok"]
    assert not errors({"y": torch.full((4,), 1.0001)}, plain, exact, bits=32)["ok"]
    assert not errors({"y": torch.tensor([1, 1, 1, float("nan")])}, plain, exact, bits=16)["ok"]


def test_the_table_is_written_as_it_is_committed():
    assert dump(json.loads(_plan.PLANS.read_text())) == _plan.PLANS.read_text()
