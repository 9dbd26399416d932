"""The rank phase of both recipes, seen from outside: windows, budget, bounds, freezing."""

import pytest
import torch
from support.tiny_run import tiny_config

from fastmoe_lora import ranks_frozen
from unistd.training.ranks import RankPhase
from unistd.training.run import build_model


def phase(tmp_path, steps=10, **ranks):
    config = tiny_config(tmp_path, {f"ranks.{key}": value for key, value in ranks.items()})
    model = build_model(config)
    return RankPhase(model, config.ranks, steps)


def push(ranks, direction):
    for rank in ranks.ranks:
        rank.grad = torch.randn_like(rank) + direction


def total(ranks):
    return sum(rank.sum().item() for rank in ranks.ranks)


def test_window_shrinks_over_its_share_of_the_phase(tmp_path):
    ranks = phase(tmp_path, recipe="sampled", window=3.0, window_share=0.6)
    windows = []
    for step in range(10):
        ranks.begin_step(step)
        windows.append(ranks.window)
        assert all(layer.rank_window == ranks.window for layer in ranks.layers)
    assert windows == pytest.approx([3, 8 / 3, 7 / 3, 2, 5 / 3, 4 / 3, 1, 1, 1, 1])


def test_sampled_recipe_keeps_the_budget_and_adds_no_penalty(tmp_path):
    ranks = phase(tmp_path, recipe="sampled", lr=0.5)
    before = total(ranks)
    for step in range(10):
        ranks.begin_step(step)
        assert ranks.penalty() == 0
        push(ranks, direction=1.0)
        ranks.end_step()
        assert total(ranks) == pytest.approx(before, rel=1e-5)
    assert ranks.summary()["rank_spread"] > 0.5
    assert all(rank.min() >= 0 and rank.max() <= 4 for rank in ranks.ranks)


def test_printed_recipe_is_adamw_with_penalty_and_bounds(tmp_path):
    ranks = phase(tmp_path, recipe="printed", lr=1.0, penalty=2.0)
    assert {layer.interpolation for layer in ranks.layers} == {"linear"}
    ranks.begin_step(0)
    assert ranks.window == 1
    with torch.no_grad():
        ranks.ranks[0].add_(0.25)
    penalty = ranks.penalty()
    assert penalty.item() == pytest.approx(2 * 0.25 * ranks.ranks[0].numel(), rel=1e-5)
    penalty.backward()
    assert all(torch.equal(rank.grad, torch.full_like(rank, 2.0)) for rank in ranks.ranks)
    for step in range(10):
        ranks.begin_step(step)
        push(ranks, direction=10.0)
        ranks.end_step()
    assert total(ranks) == 0, "a steady push ends at the lower bound"


@pytest.mark.parametrize("recipe", ["printed", "sampled"])
def test_phase_ends_with_whole_frozen_ranks_of_the_same_sum(tmp_path, recipe):
    ranks = phase(tmp_path, steps=3, recipe=recipe)
    for step in range(3):
        ranks.begin_step(step)
        push(ranks, direction=0.0)
        ranks.end_step()
        assert not ranks.frozen
    before = total(ranks)
    ranks.begin_step(3)
    assert ranks.frozen
    assert ranks_frozen(ranks.model)
    assert total(ranks) == round(before)
    assert all(torch.equal(rank, rank.round()) for rank in ranks.ranks)
    assert ranks.penalty() == 0
    frozen = [rank.clone() for rank in ranks.ranks]
    ranks.begin_step(4)
    ranks.end_step()
    assert all(torch.equal(rank, old) for rank, old in zip(ranks.ranks, frozen, strict=True))


def test_no_rank_phase_freezes_before_the_first_step(tmp_path):
    ranks = phase(tmp_path, steps=0)
    ranks.begin_step(0)
    assert ranks.frozen


def test_optimizer_state_round_trips(tmp_path):
    first, second = phase(tmp_path), phase(tmp_path)
    for step in range(3):
        first.begin_step(step)
        torch.manual_seed(step)
        push(first, 0.0)
        first.end_step()
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    for ranks in (first, second):
        ranks.begin_step(3)
        torch.manual_seed(3)
        push(ranks, 0.0)
        ranks.end_step()
    assert all(torch.equal(a, b) for a, b in zip(first.ranks, second.ranks, strict=True))
