"""Parameter groups and the schedule of the learning rate."""

import pytest
import torch
from torch import nn

from unistd.training.config import OptimConfig
from unistd.training.optim import build_optimizer, build_schedule


def test_decay_is_for_matrices_and_frozen_or_excluded_parameters_stay_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    excluded = nn.Parameter(torch.zeros(2, 2))
    model.register_parameter("rank", excluded)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3), exclude=[excluded])
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in optimizer.param_groups}
    assert groups[0.3] == {id(model[0].weight)}
    assert groups[0.0] == {id(p) for p in (model[0].bias, model[1].weight, model[1].bias, model[2].bias)}


def rates(config, steps):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = build_schedule(optimizer, config, steps)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_schedule_rises_linearly_and_falls_to_its_end():
    found = rates(OptimConfig(lr=2.0, warmup=0.2, final_lr=0.1), 100)
    assert found[0] == pytest.approx(2 / 21)
    assert found[9] == pytest.approx(2 * 10 / 21)
    assert found[20] == max(found) == pytest.approx(2.0)
    assert found[60] == pytest.approx((2.0 + 0.2) / 2)  # half way down the cosine
    assert found[-1] == pytest.approx(0.2, rel=0.02)
    assert sorted(found[20:], reverse=True) == found[20:]


def test_schedule_without_warmup_or_decay_is_constant():
    assert set(rates(OptimConfig(lr=0.5, warmup=0.0, final_lr=1.0), 10)) == {0.5}
