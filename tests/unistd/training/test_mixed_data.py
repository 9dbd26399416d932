"""Which samples make up a step, and that loading in other processes changes nothing."""

from collections import Counter

import pytest
import torch
from support.tiny_run import tiny_config

from unistd.training.data import MixedBatchSampler, MixedDataset, collate, steps_per_epoch, task_specs, train_loader

LENGTHS = {"long": 7, "short": 3, "one": 1}


def sampler(tasks_per_step=0, batch_size=2, seed=0, steps=range(21)):
    return MixedBatchSampler(LENGTHS, batch_size, tasks_per_step, seed, steps)


def test_every_step_mixes_all_tasks_in_one_order():
    for batch in sampler():
        assert [task for task, _ in batch] == ["long", "long", "short", "short", "one", "one"]


@pytest.mark.parametrize("tasks_per_step", [1, 2])
def test_tasks_take_turns(tasks_per_step):
    counts = Counter(task for batch in sampler(tasks_per_step, steps=range(30)) for task, _ in batch)
    assert set(counts.values()) == {2 * 30 * tasks_per_step // 3}


def test_each_pass_visits_every_sample_once():
    drawn = [index for batch in sampler() for task, index in batch if task == "long"]
    passes = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1, "each pass has an order of its own"


def test_step_alone_decides_the_batch():
    whole = list(sampler(tasks_per_step=2))
    assert list(sampler(tasks_per_step=2, steps=range(9, 21))) == whole[9:]
    assert list(sampler(tasks_per_step=2, seed=1)) != whole


def test_wrong_sampler_arguments():
    with pytest.raises(ValueError, match=r"train\.tasks_per_step is 4, but there are 3 tasks"):
        sampler(tasks_per_step=4)
    with pytest.raises(ValueError, match="task 'none': its training data set is empty"):
        MixedBatchSampler({"none": 0}, 1, 0, 0, range(1))


def test_collate_groups_by_task():
    frames = {name: (torch.rand(2, 1, 4, 4), torch.rand(3, 1, 4, 4)) for name in ("a", "b", "c")}
    batch = collate([("x", frames["a"]), ("y", frames["b"]), ("x", frames["c"])])
    assert list(batch) == ["x", "y"]
    torch.testing.assert_close(batch["x"][0], torch.stack([frames["a"][0], frames["c"][0]]), rtol=0, atol=0)
    assert batch["y"][1].shape == (1, 3, 1, 4, 4)


def test_cache_keeps_the_first_answer():
    calls = []

    class Counting(torch.utils.data.Dataset):
        def __getitem__(self, index):
            calls.append(index)
            return torch.full((1,), float(index)), torch.zeros(1)

    kept, fresh = MixedDataset({"t": Counting()}, cache=True), MixedDataset({"t": Counting()})
    assert kept["t", 3][1][0] is kept["t", 3][1][0]
    assert calls == [3]
    fresh["t", 3], fresh["t", 3]
    assert calls == [3, 3, 3]


def test_workers_load_the_same_batches(tmp_path):
    def batches(workers):
        config = tiny_config(tmp_path, {"data.workers": workers})
        state = torch.get_rng_state()
        loaded = list(train_loader(config, range(2)))
        assert torch.equal(torch.get_rng_state(), state), "loading must not draw from the global random state"
        return loaded

    for alone, helped in zip(batches(0), batches(1), strict=True):
        assert alone.keys() == helped.keys()
        for task in alone:
            assert all(torch.equal(a, b) for a, b in zip(alone[task], helped[task], strict=True))


def test_epoch_covers_its_samples_for_any_mix(tmp_path):
    assert steps_per_epoch(tiny_config(tmp_path)) == 2
    changes = {"train": {"epoch_samples": 5, "batch_size": 2, "tasks_per_step": 1}}
    assert steps_per_epoch(tiny_config(tmp_path, {f"train.{k}": v for k, v in changes["train"].items()})) == 9


def test_options_of_a_task_that_is_not_trained_are_an_error(tmp_path):
    config = tiny_config(tmp_path, {"task_options.sevir": {"height": 8}})
    with pytest.raises(ValueError, match=r"task_options.sevir: not one of the tasks of this run \(taxibj, kth, enso\)"):
        task_specs(config)
    with pytest.raises(ValueError, match="unknown task 'enzo', did you mean 'enso'"):
        task_specs(tiny_config(tmp_path, {"tasks": ["enzo"], "task_options": {}}))
