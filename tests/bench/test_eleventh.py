"""The recorded comparison of ways to add an eleventh task."""

import json

import pytest

from bench.eleventh import WAYS, changes, table
from bench.harness.machine import ROOT
from bench.harness.record import RESULTS
from unistd.tasks import TASKS

RECORDED = json.loads((RESULTS / "eleventh.json").read_text())


def test_recorded_are_all_ways_and_the_page_shows_them():
    assert [outcome["way"] for outcome in RECORDED["ways"]] == list(WAYS)
    assert RECORDED["before"].keys() == set(TASKS)
    assert table(RECORDED) in (ROOT / "bench" / "README.md").read_text()


def test_a_row_has_the_error_against_repeating_and_how_the_ten_changed():
    outcome = {
        "way": "alone",
        "seconds": 119.6,
        "steps": 7,
        "repeat_last": 0.4,
        "error": 0.1,
        "old": {"a": 3.0, "b": 1.0},
    }
    before = {"a": 2.0, "b": 1.0}
    assert changes(outcome, before) == pytest.approx([0.5, 0.0])
    row = table({"before": before, "ways": [outcome], "commit": "c"}).splitlines()[2]
    assert row.endswith("| 120 s | 7 | 0.100000 | -75% | +25.0% (+0.0% to +50.0%) |")
