"""A step without numbers takes what a real one takes."""

import re

import pytest
import torch
from support.peak_memory import print_peak
from support.refusal import attempt
from support.tiny_run import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from fastmoe_lora import RAMoELinear
from unistd.plan.step import ACTIVATIONS, BLOCKS, COMPONENTS, GRADIENTS, PHASES, Rehearsal, _Model
from unistd.plan.watch import Watch

# enough work that what counts is the training: frames of 32 x 32, a trunk of some width, sixteen samples
LARGER = {
    "data.val_samples": 0,
    "data.train_samples": 32,
    "tasks": ["taxibj", "kth"],
    "task_options": {
        "taxibj": {"height": 32, "width": 32, "patch": 4},
        "kth": {"height": 32, "width": 32, "patch": 4, "frames_out": 10},
    },
    "train.batch_size": 16,
    "train.epoch_samples": 32,
    "train.epochs": 1,
    "ranks.epochs": 1,
    "model.trunk": {"width": 96, "depth": 3, "heads": 4, "mlp_ratio": 3.0},
    "model.hidden": 16,
}
VARIANTS = {
    "plain": {},
    "checkpointing, deep": {"model.checkpointing": True, "model.trunk": {**LARGER["model.trunk"], "depth": 8}},
    "bf16, one task a step": {"train.precision": "bf16-mixed", "train.tasks_per_step": 1},
    "frozen parts": {"train.only": ["kth"], "train.freeze": ["trunk"]},
    "en- and decoders alone": {"train.freeze": ["trunk", "adapters"], "ranks.epochs": 0},
    "neither": {"train.freeze": ["taxibj", "kth"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_peak_of_a_real_training_is_foretold(tmp_path, variant):
    config = tiny_config(tmp_path / "run", LARGER | VARIANTS[variant])
    outcome = attempt(print_peak, config)
    found = re.search(r"peak (\d+)", outcome.output)
    assert found, outcome
    rehearsal, train = Rehearsal(config, on_cpu=True), config.train
    groups = [config.learned] if train.tasks_per_step == 0 else [[task] for task in config.tasks]
    steps = [rehearsal.step(group, train.batch_size, config.model.checkpointing) for group in groups]
    foretold = max(sum(step.memory.values()) for step in steps)
    assert foretold == pytest.approx(int(found[1]), rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_depths_give_all_others(tmp_path, checkpointing):
    config = tiny_config(tmp_path, {"model.trunk": {"width": 16, "depth": 5, "heads": 2, "mlp_ratio": 2.0}})
    line = Rehearsal(config).step(["kth", "enso"], 3, checkpointing)
    whole = _Model(config, 5, on_cpu=False).step(["kth", "enso"], 3, checkpointing)
    assert line.flops == whole.flops
    assert line.bytes == whole.bytes
    for phase in PHASES:
        expected = {part: whole.peaks[phase].get(part, 0) for part in COMPONENTS}
        assert sum(line.peaks[phase].values()) == pytest.approx(sum(expected.values()), rel=0.005), phase


def test_a_second_step_finds_nothing_of_the_first(tmp_path):
    model = _Model(tiny_config(tmp_path), 1, on_cpu=False)
    first = model.step(["kth"], 4, False)
    model.step(["enso", "taxibj"], 8, True)
    again = model.step(["kth"], 4, False)
    assert again.operators == first.operators
    assert again.peaks == first.peaks


def test_checkpointing_trades_memory_for_arithmetic(tmp_path):
    changes = {"model.trunk": {"width": 32, "depth": 6, "heads": 2, "mlp_ratio": 4.0}}
    rehearsal = Rehearsal(tiny_config(tmp_path, changes))
    plain, checkpointed = (rehearsal.step(["kth"], 8, checkpointing) for checkpointing in (False, True))
    assert checkpointed.memory[ACTIVATIONS] < plain.memory[ACTIVATIONS]
    again = sum(count * flops for (phase, _, flops, _), count in plain.operators.items() if phase == BLOCKS)
    assert plain.flops < checkpointed.flops <= plain.flops + again, "all of the blocks, or less"
    assert plain.peaks["optimizer"][GRADIENTS] == checkpointed.peaks["optimizer"][GRADIENTS] > 0


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_the_arithmetic_of_the_operator_is_that_of_its_products(splits, frozen):
    layer = RAMoELinear(24, 36, num_experts=4, max_rank=2, init_rank=1.5, splits=splits, backend="packed")
    layer.weight.requires_grad_(not frozen)
    x = torch.randn(10, 24, requires_grad=True)
    with Watch() as watch:
        layer(x).sum().backward()
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()  # the operator's own products, in plain PyTorch
    ours = {flops for _, _, flops, _ in watch.operators if flops}
    tokens, inputs, outputs, columns, logits = 10, 24, 36, splits * 8, splits * 4
    adapters = inputs * (columns + logits)
    there = inputs * outputs + adapters + 8 * outputs
    back = inputs * outputs * (2 - frozen) + 2 * adapters + 2 * 8 * outputs
    assert ours == {2 * tokens * there, 2 * tokens * back}
    assert counter.get_total_flops() in (0, sum(ours))  # 0 where torch's counter takes the operator as a whole


def test_memory_is_followed_from_birth_to_death():
    with Watch() as watch:
        watch.begin("one")
        kept = torch.zeros(1000)
        watch.phase = "two"
        torch.zeros(500)
        watch.label([kept], "mine")
        view = kept[10:]
    assert watch.peaks["one"] == {"one": 4000}
    assert watch.peaks["two"] == {"one": 4000, "two": 2000}
    watch.begin("three")
    assert watch.peaks["three"] == {"mine": 4000}
    del kept
    watch.begin("four")
    assert watch.peaks["four"] == {"mine": 4000}, "a view keeps it"
    del view
    watch.begin("five")
    assert watch.peaks.get("five", {}) == {}
