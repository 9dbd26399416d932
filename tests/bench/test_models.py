"""Whole models and the command line, at tiny sizes."""

import json

import pytest
import torch

from bench import memory, scaling
from bench.__main__ import comparisons
from bench.harness import model_comparison
from bench.harness.peak import kept_for_backward, peak_rise
from bench.harness.record import MEASURED, WRONG, load
from bench.harness.unistd_model import QUICK_TRUNK, ModelJudge, backend_of, unistd_model, without_adapters
from bench.peers.simvp import CONFIGS, SimVP
from unistd import TASKS

CPU = torch.device("cpu")


@pytest.mark.parametrize(("task", "published"), [("moving_mnist", "46.8"), ("taxibj", "9.96")])
def test_simvp_has_the_published_number_of_parameters(task, published):
    with torch.device("meta"):
        model = SimVP(CONFIGS[task])
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert f"{millions:.{len(published.split('.')[1])}f}" == published


def test_simvp_forecasts_frames_of_the_task():
    spec = TASKS["taxibj"].spec
    model = SimVP(CONFIGS["taxibj"])
    frames = torch.rand(2, *spec.input_shape, requires_grad=True)
    found = model(frames)
    assert found.shape == (2, *spec.target_shape)
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_comparisons_are_found():
    names = {"layer", "backward", "memory", "model", "train", "scaling", "plot", "revisions", "all"}
    assert names <= comparisons().keys()
    assert all(comparisons()[name] for name in names)


def test_kept_for_backward_counts_each_storage_once_and_not_what_is_given():
    x = torch.rand(1000, 250, requires_grad=True)
    w = torch.rand(250, 250, requires_grad=True)

    def run():
        h = (x @ w).exp()  # exp keeps its result
        return (h * h).sum()  # and the product keeps the same tensor twice

    assert kept_for_backward(run, [x, w]) == pytest.approx(1.0)


def test_peak_rise_sees_a_temporary():
    def run():
        return torch.ones(5_000_000).sum()  # 20 MB

    assert 19 < peak_rise(run, CPU) < 25


def test_model_check_refuses_a_wrong_backend(monkeypatch):
    from fastmoe_lora.backends import packed

    spec = TASKS["taxibj"].spec
    model = unistd_model([spec], QUICK_TRUNK, CPU)
    judge = ModelJudge(model, torch.float32, CPU, gradients=True)
    error, allowed, wrong = judge.check("packed")
    assert not wrong
    assert error <= allowed
    right = packed.backward

    def off(*arguments):
        dx, *others = right(*arguments)
        return (None if dx is None else dx * 1.01, *others)

    monkeypatch.setattr(packed, "backward", off)
    assert "relative error" in judge.check("packed")[2]


def test_without_adapters_is_the_same_trunk():
    model = unistd_model([TASKS["taxibj"].spec], QUICK_TRUNK, CPU).eval()
    plain = without_adapters(model)
    frames = torch.rand(1, *TASKS["taxibj"].spec.input_shape)
    assert not plain.ramoe_layers()
    with torch.no_grad(), backend_of(model, "packed"):
        assert not torch.allclose(plain(frames, "taxibj"), model(frames, "taxibj"))
        for layer in model.ramoe_layers().values():
            layer.lora_B.zero_()
        torch.testing.assert_close(plain(frames, "taxibj"), model(frames, "taxibj"))


@pytest.mark.parametrize("training", [False, True], ids=["model", "train"])
def test_whole_models_are_compared(tmp_path, training):
    arguments = [
        "--quick",
        "--threads",
        "1",
        "--against",
        "packed",
        "no-adapters",
        "--dtype",
        "fp32",
        "--output",
        str(tmp_path),
    ]
    model_comparison.run("train" if training else "model", [*arguments, "--sizes", "taxibj", "enso"], training)
    record = load(next(tmp_path.iterdir()))
    assert [group.shape["tasks"] for group in record.groups] == [1, 1, 2]
    assert record.groups[2].items == 8
    for entry in (entry for group in record.groups for entry in group.entries):
        assert entry.status == MEASURED, entry.reason
        assert entry.peak_mb >= 0
    names = {entry.name for entry in record.groups[2].entries}
    assert names == {"packed", "packed-separate", "no-adapters"}


def test_memory_shows_what_the_loop_keeps(tmp_path):
    size = "M=600,K=64,N=192,S=3,E=4,R=4"
    arguments = ["--threads", "1", "--sizes", size, "--dtype", "fp32", "--against", "linear", "hydralora", "packed"]
    memory.main([*arguments, "--output", str(tmp_path)])
    kept = load(tmp_path / "memory.json").groups[0]
    assert kept.entry("linear").samples == [0.0]
    # The loop keeps an expert's output (M, N/S) for each split and expert; ours the low-rank product (M, S, E·R).
    assert kept.entry("hydralora").samples[0] > 600 * 192 * 4 * 4 / 1e6
    assert kept.entry("packed").samples[0] < 600 * 3 * (16 + 4 + 4) * 4 / 1e6


def test_scaling_records_every_axis(tmp_path):
    scaling.main(["--quick", "--dtype", "fp32", "--threads", "1", "--axes", "rank", "tasks", "--output", str(tmp_path)])
    record = load(tmp_path / "scaling.json")
    assert {(group.axis, group.title) for group in record.groups} == {
        ("rank", "forward and backward"),
        ("rank", "kept for backward"),
        ("tasks", "training step"),
    }
    assert all(entry.status != WRONG for group in record.groups for entry in group.entries)
    assert json.loads((tmp_path / "scaling.json").read_text())["settings"]["axes"] == ["rank", "tasks"]
