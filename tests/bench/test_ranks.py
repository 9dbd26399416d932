"""The experiment on planted ranks, one short run of each recipe."""

import pytest

from bench.ranks import Outcome, learn, learn_routed, table


@pytest.mark.parametrize(("recipe", "ranks"), [("printed", (4.5, 4.5)), ("ours", (1, 8))])
def test_ours_finds_the_planted_ranks_and_the_printed_recipe_stays(recipe, ranks):
    outcome = learn(recipe, planted=(1, 8), seed=0, steps=800)
    assert outcome.ranks == pytest.approx(ranks, abs=0.5)
    assert sum(outcome.ranks) == pytest.approx(9, abs=0.1)
    assert outcome.error < 0.01 if recipe == "ours" else outcome.error > 0.1


def test_adalora_finds_them_too_where_they_are_as_unlike():
    outcome = learn("adalora", planted=(1, 8), seed=0, steps=800)
    assert outcome.ranks == (1, 8)
    assert outcome.error < 0.01


@pytest.mark.parametrize("recipe", ["printed", "ours"])
def test_experts_behind_a_learned_router_find_theirs(recipe):
    outcome = learn_routed(recipe, planted=(1, 8), seed=0, steps=800)
    assert outcome.routed
    assert outcome.ranks == pytest.approx((1, 8) if recipe == "ours" else (4.5, 4.5), abs=0.6)
    assert (outcome.error < 0.01) is (recipe == "ours")


def test_table_has_a_line_per_run():
    lines = table([Outcome("ours", (1, 8), 2, (1.04, 7.96), 0.0123, (), routed=True)]).splitlines()
    assert lines[1].split() == ["(1,", "8)", "routed", "ours", "2", "1.0", "8.0", "0.0123"]
