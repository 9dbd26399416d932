"""What of `bench.gpu_check` needs no GPU: that no item can take the others along, and the rule of right."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from bench.gpu_check import Part, table
from bench.gpu_items import Log, errors
from bench.gpu_search import dump
from fastmoe_lora.backends import _plan

ROOT = Path(__file__).parents[2]
ITEMS = """
import os, time, pathlib
from bench.gpu_items import Log
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
    assert "2 of 5 right" in table(Part("part", "gpu_items", 1).name, rows)


def test_the_rule_of_right():
    exact = {"y": torch.ones(4, dtype=torch.float64)}
    plain = {"y": torch.full((4,), 1.01)}
    assert errors({"y": torch.full((4,), 1.015)}, plain, exact, bits=16)["ok"]
    assert not errors({"y": torch.full((4,), 1.03)}, plain, exact, bits=16)["ok"]
    assert not errors({"y": torch.full((4,), 1.0001)}, plain, exact, bits=32)["ok"]
    assert not errors({"y": torch.tensor([1, 1, 1, float("nan")])}, plain, exact, bits=16)["ok"]


def test_the_table_is_written_as_it_is_committed():
    assert dump(json.loads(_plan.PLANS.read_text())) == _plan.PLANS.read_text()
