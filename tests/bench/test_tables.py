"""Tables and figures from records: nothing typed by hand, no speed-up of a wrong result, losses in plain words."""

import pytest
import torch

from bench.gpu import tables
from bench.harness import charts
from bench.harness.record import UNAVAILABLE, WRONG, Entry, Group, Record
from bench.harness.tables import between_markers, losses, scaling_table, section, table
from bench.plot import draw, fill


def group(ours: float, peer: float, **options) -> Group:
    made = Group("qkv", "bfloat16", {"M": 4, "K": 8, "N": 8, "S": 1, "E": 2, "R": 2}, **options)
    noise = (1.0, 1.02, 0.98, 1.01, 0.99)
    made.entries = [
        Entry("linear", "floor", samples=[10 * n for n in noise]),
        Entry("three-gemm", "three GEMMs", samples=[peer * n for n in noise]),
        Entry("unsloth", "unsloth", status=UNAVAILABLE, reason="needs a GPU"),
        Entry("cpu", "fastmoe_lora, cpu", ours=True, samples=[ours * n for n in noise]),
    ]
    return made


def record(*groups: Group, comparison: str = "layer") -> Record:
    made = Record.begin(comparison, torch.device("cpu"), {"device": "cpu"})
    made.groups = list(groups)
    return made


def test_table_has_medians_and_paired_ratios():
    lines = table([group(12.0, 15.0)]).splitlines()
    assert lines[0] == "| | qkv, bf16 |"
    assert "| floor | 10 ms |" in lines
    assert "| three GEMMs | 15 ms (1.50x) |" in lines
    assert "| **fastmoe_lora, cpu** | 12 ms (1.20x) |" in lines


def test_what_did_not_run_is_named_with_its_reason():
    assert "Not run: unsloth (needs a GPU)" in section(record(group(12.0, 15.0)))


def test_a_peer_that_wins_is_named_in_words_with_a_reason():
    text = section(record(group(12.0, 15.0), group(18.0, 15.0)))
    assert "**Where a peer is better:**" in text
    assert "fastmoe_lora, cpu takes 1.20 times the time (1.20 to 1.20) of three GEMMs: it calls the same" in text
    assert text.count("times the time") == 1


def test_without_a_loss_the_text_says_so():
    text = section(record(group(12.0, 15.0)))
    assert "No peer that ran here is better at any of these sizes." in text
    assert "better:" not in text


def test_a_difference_within_the_spread_is_no_loss():
    close = group(12.0, 12.0)
    close.entry("cpu").samples = [11.0, 13.0, 11.5, 12.9, 12.2]
    assert losses([close]) == []


def test_a_wrong_result_shows_neither_time_nor_speed_up():
    wrong = group(1.0, 15.0)
    entry = wrong.entry("cpu")
    entry.status, entry.reason, entry.samples = WRONG, "y: relative error 1e-1, allowed 1e-3", []
    text = section(record(wrong))
    row = next(line for line in text.splitlines() if line.startswith("| **fastmoe_lora, cpu**"))
    assert row == "| **fastmoe_lora, cpu** | wrong result |"
    assert "**Wrong result, so not timed:** fastmoe_lora, cpu" in text
    assert "No peer" in text or "better" not in text


def test_rates_and_peak_memory_of_whole_models():
    whole = group(12.0, 15.0, items=8)
    whole.entry("cpu").peak_mb = 321.4
    assert "| **fastmoe_lora, cpu** | 667 samples/s (1.20x), 321 MB |" in table([whole])


def test_scaling_table_follows_the_axis():
    points = [group(12.0, 15.0, axis="tokens", value=v) for v in (196, 784)]
    assert "| tokens, qkv | 196: 1.20x · 784: 1.20x |" in scaling_table(record(*points, comparison="scaling"))


def test_tables_go_between_their_markers_and_nothing_else_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# a\n<!-- bench:layer -->\nold\n<!-- /bench:layer -->\ntail\n")
    fill(readme, {"layer": record(group(12.0, 15.0))}, tmp_path)
    once = readme.read_text()
    assert once.startswith("# a\n<!-- bench:layer -->\n| | qkv, bf16 |")
    assert once.endswith("\n<!-- /bench:layer -->\ntail\n")
    assert "old" not in once
    fill(readme, {"layer": record(group(12.0, 15.0))}, tmp_path)
    assert readme.read_text() == once


def test_a_figure_is_linked_from_where_the_readme_stands(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:layer -->\n<!-- /bench:layer -->\n")
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    (results / "layer.png").touch()
    fill(readme, {"layer": record(group(12.0, 15.0))}, results)
    assert "\n![layer](bench/results/layer.png)\n\n| | qkv, bf16 |" in readme.read_text()


def test_a_marker_that_is_not_closed_is_an_error():
    with pytest.raises(ValueError, match="bench:layer"):
        between_markers("<!-- bench:layer -->\n", "layer", "x")
    assert between_markers("no markers", "layer", "x") is None


@pytest.mark.parametrize("comparison", ["layer", "memory", "model", "scaling"])
def test_figures_are_drawn(tmp_path, comparison):
    options = {"items": 4} if comparison == "model" else {}
    groups = [group(12.0, 15.0, **options), group(11.0, 15.0, **options), group(9.0, 15.0, **options)]
    if comparison == "scaling":
        groups = [group(12.0 * v, 15.0 * v, axis="tokens", value=v) for v in (1, 2, 4)]
        groups += [group(12.0 * v, 15.0 * v, axis="tokens", value=v, unit="MB") for v in (1, 2, 4)]
    draw(record(*groups, comparison=comparison), tmp_path / comparison)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted([f"{comparison}.png", *(["scaling-memory.png"] if comparison == "scaling" else [])])
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    assert charts.WIDTH * charts.DPI < 1400  # about twice a README's width, sharp on dense screens


def test_targets_are_met_or_missed_by_the_median_of_paired_ratios():
    text = section(record(group(12.0, 15.0, targets={"linear": 1.1, "three-gemm": 0.9}), comparison="cpu_targets"))
    assert "| qkv | floor | 1.10 | 1.20 | 1.20 to 1.20 | missed |" in text
    assert "| qkv | three GEMMs | 0.90 | 0.80 | 0.80 to 0.80 | met |" in text


def test_what_a_gpu_gave_is_shown_beside_what_was_wanted():
    timing = {"item": "QKV forward M 8", "ok": True, "target": 1.2, "ratio graph": 1.375, "triton graph ms": 0.5}
    timing |= {"ratio eager": 2.0, "triton eager ms": 1.25}
    calls = {f"{name} us": us for name, us in (("triton", 90), ("linear", 30), ("three-gemm", 200), ("hydralora", 900))}
    parts = {"timings": [timing, {"item": "memory", "ok": False}], "host": [{"item": "forward", "ok": True} | calls]}
    machine, versions = {"gpu": "A GPU", "cuda": "13"}, {"torch": "2.11", "triton": "3.6"}
    text = tables.section({"parts": parts, "machine": machine, "versions": versions, "commit": "abc"})
    assert "| QKV forward M 8 | 1.20 | 1.38 (0.5 ms) | 2.00 (1.25 ms) |" in text
    assert "| **fastmoe_lora, triton** | 90 |" in text
    assert "Without a fault: timings 1 of 2, host 1 of 1." in text
