"""How often tasks have their turns, and that seed, step and recorded losses alone decide it."""

import io
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.bad_config import refused
from support.many_processes import SHARED, assert_same_course, processes_of, train
from support.processes import together
from support.stopping import Stopping
from support.tiny_run import tiny_config

from unistd.training.balance import LossBalance
from unistd.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from unistd.training.config import TrainConfig
from unistd.training.data import MixedBatchSampler
from unistd.training.run import Run
from unistd.training.sampling import Proportional, shares_of
from unistd.training.stop import Stopped
from unistd.training.trainer import Trainer

SHARES = [0.6, 0.3, 0.1]
BALANCED = SHARED | {"train.sampling": "loss_balanced", "train.epochs": 3}
WEIGHTED = {"train.sampling": "temperature", "train.loss_weights": {"kth": 3.0}}


@pytest.mark.parametrize("seed", [0, 1])
def test_turns_are_as_frequent_as_their_shares_and_spread_evenly(seed):
    schedule = Proportional(SHARES, seed)
    turns = schedule.turns(range(1000))
    counts = Counter()
    for number, (task, visit) in enumerate(turns, 1):
        assert visit == counts[task], "every visit once, in its order"
        counts[task] += 1
        assert all(abs(counts[place] - share * number) <= 3 for place, share in enumerate(SHARES)), number
    assert turns != Proportional(SHARES, seed + 1).turns(range(1000))


def test_equal_shares_are_rounds():
    turns = [task for task, _ in Proportional([1 / 4] * 4, 0).turns(range(400))]
    rounds = [tuple(turns[first : first + 4]) for first in range(0, 400, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in rounds)
    assert len(set(rounds)) > 10


def test_any_part_of_the_turns_is_that_of_the_whole():
    schedule = Proportional(SHARES, 5, first=7, visits=[4, 2, 1])
    whole = schedule.turns(range(7, 507))
    for first, last in ((7, 8), (8, 20), (300, 333), (490, 507)):
        assert schedule.turns(range(first, last)) == whole[first - 7 : last - 7]
    after = Counter(task for task, _ in whole[:300])
    assert schedule.visits_at(307) == [after[0] + 4, after[1] + 2, after[2] + 1]
    with pytest.raises(ValueError, match="turn 6: expected one from 7 on"):
        schedule.turns(range(6, 9))


@pytest.mark.parametrize(
    ("sampling", "temperature", "expected"),
    [("proportional", 9.0, (1600, 100)), ("temperature", 1.0, (1600, 100)), ("temperature", 2.0, (4, 1))],
)
def test_shares_are_powers_of_the_number_of_samples(sampling, temperature, expected):
    train = TrainConfig(sampling=sampling, temperature=temperature)
    shares = shares_of(train, {"long": 1600, "short": 100})
    assert shares == pytest.approx([part / sum(expected) for part in expected])
    lengths = {"long": 1600, "short": 100}
    sampler = MixedBatchSampler(lengths, 2, 0, 0, range(850), Proportional(shares, 0))
    drawn = Counter(task for batch in sampler for task, _ in batch)
    assert drawn["long"] / drawn["short"] == pytest.approx(expected[0] / expected[1], rel=0.05)
    seen = [index for batch in sampler for task, index in batch if task == "short"]
    assert len(set(seen[:100])) == min(100, len(seen)), "a pass visits every sample once"


def test_losses_decide_the_shares_of_the_next_epoch():
    balance = LossBalance(["far", "near", "unseen"], 0)
    assert balance.shares == pytest.approx([1 / 3] * 3)
    balance.note({"far": 2.0, "near": 0.5})
    balance.note({"far": 4.0, "near": float("nan")})
    balance.begin_epoch(30)
    errors = (3.0, 0.5, 1.0)
    assert balance.shares == pytest.approx([1 / 6 + error / sum(errors) / 2 for error in errors])
    shares = balance.shares
    balance.begin_epoch(30)
    assert balance.shares == shares, "once an epoch"


def run(folder, stop_at=None, resume=False, **changes):
    folder.mkdir(exist_ok=True)
    changes = {"train.sampling": "loss_balanced", "train.tasks_per_step": 2} | changes
    trainer = Stopping(tiny_config(folder, changes), Run(folder), Console(file=io.StringIO()), resume)
    trainer.stop_at = stop_at
    trainer.fit()
    return load_checkpoint(trainer.run.checkpoint)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_run_by_losses_goes_on_exactly_within_an_epoch_and_between_two(tmp_path):
    whole = run(tmp_path / "whole", **{"data.workers": 1})
    assert len({*whole["balance"]["errors"].values(), 1.0}) == 4, "its errors were taken into account"
    for step in (2, 3, 6):
        with pytest.raises(Stopped):
            run(tmp_path / f"{step}", stop_at=step)
        resumed = run(tmp_path / f"{step}", resume=True)
        for part in ("balance", "model", "optimizer", "log"):
            assert same(resumed[part], whole[part]), (step, part)


def test_a_damaged_record_of_losses_is_named(tmp_path):
    state = run(tmp_path)
    state["balance"]["visits"] = [1, -2, 3]
    save_checkpoint(Run(tmp_path).checkpoint, state)
    with pytest.raises(CheckpointError, match=r"'balance.visits': expected 3 whole numbers up to"):
        run(tmp_path, resume=True, **{"train.epochs": 5})


def in_two(rank: int, folder: str) -> None:
    processes, folder = processes_of(rank), Path(folder)
    turns = train(folder / "two", BALANCED, processes).balance.state_dict()
    train(folder / "weighted two", SHARED | WEIGHTED, processes)
    found = processes.gather(turns)
    assert found[0] == found[1], "the same bits in both"


def test_two_processes_take_the_turns_and_steps_of_one(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tmp_path / "one", BALANCED)
    train(tmp_path / "weighted one", SHARED | WEIGHTED)
    together(in_two, tmp_path)
    torch.set_num_threads(threads)
    assert_same_course(tmp_path / "two", tmp_path / "one")
    assert_same_course(tmp_path / "weighted two", tmp_path / "weighted one")


def test_weights_of_tasks_are_factors_of_their_errors(tmp_path):
    def weights(**changes):
        trainer = Trainer(tiny_config(tmp_path, changes), Run(tmp_path), Console(file=io.StringIO()))
        return trainer.objective.weights

    plain, weighted = weights(), weights(**{"train.loss_weights": {"kth": 3.0}})
    assert weighted == pytest.approx(plain | {"kth": 3 * plain["kth"]})


def test_wrong_names_and_values_are_refused():
    refused("demo", ["train.sampling=random"], "'train.sampling'", "round_robin", "loss_balanced", "'random'")
    refused("demo", ["train.temperature=0.5"], "'train.temperature'", "0.5")
    refused("demo", ["train.loss_weights.kht=2"], "train.loss_weights: expected any of taxibj", "'kht'")
    refused("demo", ["train.loss_weights.kth=0"], "'train.loss_weights.kth'", "greater than 0")
