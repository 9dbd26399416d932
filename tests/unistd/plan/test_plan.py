"""Plans for any number of GPUs, from a tiny config."""

import pytest
import yaml
from support.refusal import assert_refused, run_command
from support.tiny_run import TINY, tiny_config

from unistd.cli import main
from unistd.plan.docs import PAGE, page
from unistd.plan.estimate import CONTEXT, GRADIENTS, MOMENTS, TRUNK, Assumptions, Planner, _share
from unistd.plan.gpus import GPUS
from unistd.plan.table import duration, notes

H100 = GPUS["h100"]


@pytest.fixture(scope="module")
def planner(tmp_path_factory) -> Planner:
    return Planner(tiny_config(tmp_path_factory.mktemp("plan"), {"train.batch_size": 8, "train.epoch_samples": 64}))


def test_page_is_fresh():
    assert PAGE.read_text() == page(), "write it anew: python -m unistd.plan.docs"


def test_the_batch_is_shared_out(planner):
    one, four, many = (planner.plan(H100, number) for number in (1, 4, 1000))
    assert [plan.per_gpu for plan in (one, four, many)] == [8, 2, 1]
    assert one.samples == four.samples == many.samples == 24
    assert many.idle == 1000 - 24
    assert one.steps == four.steps == 8
    assert len(one.variants), len(four.variants) == (2, 4)
    assert _share(("a", "b", "c"), 8, 3) == (("a", "b", "c"), 3)
    assert _share(("a", "b", "c"), 1, 2) == (("a", "b"), 1)


def test_shards_divide_what_is_kept(planner):
    whole, _, sharded, _ = planner.plan(H100, 4).variants
    for part in (TRUNK, GRADIENTS, MOMENTS):
        assert sharded.memory[part] == whole.memory[part] / 4
    assert sharded.communication > whole.communication > 0
    assert planner.plan(H100, 1).variants[0].communication == 0
    assert planner.plan(H100, 16).variants[0].communication > 5 * whole.communication, "the network is slower"


@pytest.mark.parametrize("checkpointing", [0, 1], ids=["plain", "checkpointing"])
def test_the_largest_batch_is_the_last_that_fits(planner, checkpointing):
    assumed = Assumptions(context=79.5e9)
    largest = planner.plan(H100, 1, assumed).variants[checkpointing].largest
    fits, does_not = (
        planner.plan(H100, 1, assumed, batch_size=number).variants[checkpointing] for number in (largest, largest + 2)
    )
    assert fits.total <= H100.memory < does_not.total
    assert fits.memory[CONTEXT] == 79.5e9


def test_a_better_machine_is_faster_and_no_more_is_reached_than_assumed(planner):
    slow, fast = (planner.plan(GPUS[name], 1, Assumptions(launch=0)).variants[0] for name in ("a100", "h200"))
    assert fast.seconds < slow.seconds
    half = planner.plan(H100, 1, Assumptions(0.25, launch=0)).variants[0]
    assert half.compute == pytest.approx(2 * planner.plan(H100, 1, Assumptions(0.5, launch=0)).variants[0].compute)
    assert half.compute >= half.flops / (0.25 * H100.fp32)
    assert half.compute >= half.bytes / (0.25 * H100.bandwidth)


def test_what_does_not_fit_is_told_what_helps(planner):
    def lines(context: float, number: int = 1) -> str:
        return "\n".join(notes(planner.plan(H100, number, Assumptions(context=context))))

    assert "does not fit" not in lines(1e9)
    assert "smaller trunk" in lines(80e9)
    total = planner.plan(H100, 1, Assumptions(context=0)).variants
    between = 80e9 - (total[0].total + total[1].total) / 2
    assert "model.checkpointing=true, or train.batch_size=" in lines(between)
    assert "have no sample in a step" in lines(1e9, 100)


def test_durations_are_for_people():
    assert [duration(s) for s in (0.25, 59, 600, 9000, 864000)] == ["0.2 s", "59 s", "10.0 min", "2.5 h", "10.0 days"]


def test_command_prints_a_plan(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    words = ["plan", "--config", str(file), "--gpu", "H100", "--gpus", "8", "--batch", "2", "train.epochs=7"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "8 x H100" in out
    assert "16 samples of each, 2 of them on a GPU" in out
    assert "the whole, 7 epochs" in out
    assert "assumed: 50%" in out


CASES = {
    "no GPU": (["--config", "demo"], "--gpu"),
    "unknown GPU": (["--config", "demo", "--gpu", "h1000"], "'h1000', did you mean"),
    "far GPU": (["--config", "demo", "--gpu", "abacus"], "expected one of a100"),
    "no config": (["--gpu", "h100"], "--config"),
    "unknown config": (["--config", "demmo", "--gpu", "h100"], "demmo"),
    "no GPUs": (["--config", "demo", "--gpu", "h100", "--gpus", "0"], "'0'"),
    "too many GPUs": (["--config", "demo", "--gpu", "h100", "--gpus", "9" * 50], "99999"),
    "half a GPU": (["--config", "demo", "--gpu", "h100", "--gpus", "1.5"], "'1.5'"),
    "negative batch": (["--config", "demo", "--gpu", "h100", "--batch=-4"], "'-4'"),
    "batch of words": (["--config", "demo", "--gpu", "h100", "--batch", "four"], "'four'"),
    "no efficiency": (["--config", "demo", "--gpu", "h100", "--efficiency", "0"], "'0'"),
    "more than all": (["--config", "demo", "--gpu", "h100", "--efficiency", "1.1"], "'1.1'"),
    "not a number": (["--config", "demo", "--gpu", "h100", "--efficiency", "nan"], "'nan'"),
    "twice": (["--config", "demo", "--gpu", "h100", "--gpu", "a100"], "given twice"),
    "unknown key": (["--config", "demo", "--gpu", "h100", "train.bach=1"], "train.bach"),
    "unknown trunk": (["--config", "demo", "--gpu", "h100", "model.trunk=ViT-B-17"], "ViT-B-17"),
    "unknown option": (["--config", "demo", "--gpu", "h100", "--nodes", "4"], "--nodes"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(case):
    words, culprit = CASES[case]
    outcome = run_command("plan", *words)
    assert_refused(outcome, culprit)
