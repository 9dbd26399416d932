"""Forecasters side by side: the rivals are what they are said to be, budgets are steps, and a run goes on."""

import json
from dataclasses import replace

import pytest
import torch
from support.tiny import spec
from torch import nn

from bench import skill
from bench.forecasting import report
from bench.forecasting.entrants import ENTRANTS
from bench.forecasting.ledger import Ledger
from bench.forecasting.rivals import conv_lstm, simvp
from bench.forecasting.training import Course, Plan
from bench.harness.machine import ROOT
from bench.harness.record import RESULTS
from bench.peers.simvp import CONFIGS, SimVP

TINY = [
    "model.trunk.width=16",
    "model.trunk.depth=1",
    "model.trunk.heads=2",
    "model.hidden=8",
    "model.temporal_width=8",
]


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(skill, "TRAIN_SAMPLES", 8)
    monkeypatch.setattr(skill, "TEST_SAMPLES", 2)
    return skill.Comparison("demo", None, 0.01, Ledger(tmp_path / "skill.json", {"suite": "demo"}))


@pytest.mark.parametrize(("task", "millions"), [("moving_mnist", 46.8), ("taxibj", 9.96)])
def test_simvp_has_the_published_sizes(task, millions):
    with torch.device("meta"):
        model = SimVP(CONFIGS[task])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("make", [simvp, conv_lstm])
def test_rivals_forecast_any_number_of_frames_of_any_size(make):
    specs = {s.name: s for s in (spec("longer", 2, 9, 14, 3, 7, 4), spec("shorter", 1, 8, 8, 5, 2, 4))}
    model = make(specs).eval()
    frames = {name: torch.rand(2, *s.input_shape) for name, s in specs.items()}
    found = model(frames)
    for name, s in specs.items():
        assert found[name].shape == (2, *s.target_shape)
        torch.testing.assert_close(model(frames[name], name), found[name])


def test_joint_simvp_shares_the_translators_convolutions_and_alone_it_is_the_published_model():
    specs = {s.name: s for s in (spec("one", 1, 16, 16, 4, 4, 4), spec("two", 2, 16, 16, 3, 3, 4))}
    count = {names: _parameters(simvp({name: specs[name] for name in names})) for names in (("one",), ("two",))}
    both = simvp(specs)
    one, two = (both.models[name].model for name in specs)
    assert one.translator.layers[2].mlp is two.translator.layers[2].mlp
    assert one.translator.layers[2].norm1 is not two.translator.layers[2].norm1
    assert one.translator.layers[0].mlp is not two.translator.layers[0].mlp
    shared = _parameters(one.translator.layers[2].mlp) + _parameters(one.translator.layers[2].attention)
    assert _parameters(both) == sum(count.values()) - 3 * (shared + 2 * 128)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ENTRANTS)
def test_a_training_is_a_function_of_its_plan_and_changes_the_model(comparison, name):
    config = comparison.config(["taxibj", "enso"], TINY)
    plan = Plan({"taxibj": 3, "enso": 1}, seed=1)
    assert plan.steps == 2
    courses = [Course(ENTRANTS[name], config, plan, comparison.data(config)) for _ in range(2)]
    assert [sorted(batch) for batch in courses[0].batches()] in (
        [["enso", "taxibj"], ["taxibj"]],
        [["taxibj"], ["enso", "taxibj"]],
    )
    before = [p.detach().clone() for p in courses[0].model.parameters()]
    one, two = (list(course.run().parameters()) for course in courses)
    assert any(not torch.equal(p, q) for p, q in zip(before, one, strict=False))
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_a_run_is_kept_and_not_run_again(comparison, monkeypatch):
    comparison.ledger.step_seconds = {"unistd taxibj": 0.2, "simvp taxibj": 0.3, "unistd enso": 0.1}
    for name, budget in (("unistd", "time"), ("simvp", "time"), ("simvp", "samples")):
        comparison.run(name, ["taxibj"], [], budget, seed=0)
    comparison.run("unistd", ["taxibj"], [], "samples", seed=0)  # is the one at equal time
    runs = Ledger(comparison.ledger.file, {"suite": "demo"}).runs
    assert [(run.entrant, run.budget, run.steps) for run in runs] == [
        ("unistd", "time", 3),
        ("simvp", "time", 2),
        ("simvp", "samples", 3),
    ]
    monkeypatch.setattr(Course, "run", lambda course: pytest.fail("run again"))
    comparison.run("simvp", ["taxibj"], [], "samples", seed=0)
    assert comparison.plan("simvp", ["taxibj", "enso"], [], "samples", 0).batches == {"taxibj": 3, "enso": 6}
    with pytest.raises(ValueError, match="its settings are"):
        Ledger(comparison.ledger.file, {"suite": "real"})


def test_joint_is_set_beside_the_single_task_model_of_the_same_seed(comparison):
    comparison.ledger.step_seconds = {"unistd taxibj": 0.3, "unistd enso": 0.3}
    for tasks in (["taxibj"], ["enso"], ["taxibj", "enso"]):
        comparison.run("unistd", tasks, [], "samples", seed=0)
    ledger = comparison.ledger
    one, _, both = ledger.runs
    ledger.runs.append(replace(one, seed=1))
    ratios = report.over_single(ledger, "unistd", 2)
    assert ratios["taxibj"] == [both.values["taxibj"]["mse"] / one.values["taxibj"]["mse"]]
    assert "UniSTD, 2 tasks" in report.joint_table(ledger)
    assert report.geometric_mean([2.0, 8.0]) == pytest.approx(4)


def test_the_page_shows_what_was_recorded():
    page = (ROOT / "bench" / "SKILL.md").read_text()
    for file in RESULTS.glob("skill*.json"):
        assert report.section(Ledger(file, {}), file.stem) in page
        assert json.loads(file.read_text())["machine"]["cpu"]
    assert skill.screened(Ledger(RESULTS / "screening.json", {})) in page


def test_a_change_is_set_beside_what_it_changes(comparison):
    comparison.ledger.step_seconds = {"unistd taxibj": 0.6, "unistd taxibj optim.lr=0.5": 0.6}
    for changes in ([], ["optim.lr=0.5"]):
        comparison.run("unistd", ["taxibj"], changes, "time", seed=0)
    errors = [run.values["taxibj"]["mse"] for run in comparison.ledger.runs]
    row = next(line for line in report.screening_table(comparison.ledger, []).splitlines() if "lr=0.5" in line)
    assert row.split(" | ")[-2:] == [f"{errors[1] / errors[0]:.2f}", "1 |"]
