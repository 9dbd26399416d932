"""The timing core: interleaved, paired, robust to entrants that raise."""

import time

import pytest
import torch

from bench.harness.timing import Quantiles, describe, interleaved, paired_ratio

CPU = torch.device("cpu")


def test_quantiles_are_those_of_the_samples():
    assert Quantiles.of([float(i) for i in range(11)]) == Quantiles(5.0, 2.0, 8.0)
    assert Quantiles.of([3.0]) == Quantiles(3.0, 3.0, 3.0)


def test_paired_ratio_is_not_moved_by_drift_that_both_share():
    drift = [1.0, 2.0, 10.0, 3.0]
    ratio = paired_ratio([3 * d for d in drift], [2 * d for d in drift])
    assert ratio == Quantiles(1.5, 1.5, 1.5)


def test_interleaved_measures_a_known_ratio():
    samples, failures = interleaved(
        {"long": lambda: time.sleep(0.008), "short": lambda: time.sleep(0.004)}, CPU, seconds=0.1
    )
    assert not failures
    assert len(samples["long"]) == len(samples["short"]) >= 5
    # A sleep never ends early; on a busy machine it may end late.
    assert min(samples["long"]) >= 8
    assert min(samples["short"]) >= 4


def test_every_round_runs_every_function_once_and_the_order_changes():
    calls = []
    functions = {name: lambda name=name: (calls.append(name), time.sleep(0.003)) for name in "abc"}
    interleaved(functions, CPU, seconds=0, min_rounds=6)
    rounds = ["".join(calls[i : i + 3]) for i in range(6, len(calls), 3)]  # behind two warm-up calls each
    assert len(rounds) == 6
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1


def test_one_that_raises_is_reported_and_the_others_go_on():
    counter = iter(range(100))

    def fails_later():
        time.sleep(0.003)  # so that a sample is one call
        if next(counter) == 3:
            raise RuntimeError("out of luck\nsecond line")

    def fails_at_once():
        raise ValueError("no")

    samples, failures = interleaved(
        {"late": fails_later, "once": fails_at_once, "fine": lambda: time.sleep(0.003)}, CPU, seconds=0, min_rounds=5
    )
    assert failures == {"late": "RuntimeError: out of luck", "once": "ValueError: no"}
    assert list(samples) == ["fine"]
    assert len(samples["fine"]) == 5


def test_short_calls_are_repeated_within_a_sample():
    count = 0

    def tick():
        nonlocal count
        count += 1

    samples, _ = interleaved({"tick": tick}, CPU, seconds=0, min_rounds=2)
    assert count > 2 + 2 * 50
    assert max(samples["tick"]) < 2.0


def test_with_cold_caches_every_call_is_a_sample_of_its_own():
    count = 0

    def tick():
        nonlocal count
        count += 1

    samples, _ = interleaved({"tick": tick}, CPU, seconds=0, min_rounds=3, cold=True)
    assert len(samples["tick"]) == 3
    assert count == 2 + 3


@pytest.mark.parametrize(("error", "line"), [(KeyError(), "KeyError"), (ValueError("a\nb"), "ValueError: a")])
def test_errors_become_one_line(error, line):
    assert describe(error) == line
