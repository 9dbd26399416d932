"""get_task, build_dataset, files_found, task_table."""

import pickle

import pytest
import torch

from unistd.tasks import TASKS, DataFileError, build_dataset, files_found, get_task, task_table


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'taxi_bj', did you mean 'taxibj'"):
        get_task("taxi_bj")
    with pytest.raises(ValueError, match="unknown task 'xyz', expected one of taxibj, traffic4cast"):
        build_dataset("xyz", "train")
    with pytest.raises(ValueError, match="unknown split 'trian', did you mean 'train'"):
        build_dataset("kth", "trian")


@pytest.mark.parametrize(("argument", "value"), [("length", 0), ("length", 1.5), ("seed", -1)])
def test_bad_numbers_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}, expected a whole number"):
        build_dataset("kth", "train", **{argument: value})


def test_another_number_of_channels_is_refused():
    spec = get_task("kth").spec.replace(channels=3)
    with pytest.raises(ValueError, match="task kth: channels is 3, expected 1"):
        build_dataset(spec, "train")


def test_items_are_pairs_of_float32_tensors():
    spec = get_task("bair").spec
    data = build_dataset(spec, "val", length=3)
    inputs, targets = data[2]
    assert len(data) == 3
    assert inputs.shape == spec.input_shape
    assert targets.shape == spec.target_shape
    assert inputs.dtype == targets.dtype == torch.float32
    assert data.source == "generated"
    assert data.spec == spec
    with pytest.raises(IndexError, match="index 3 is out of range for 3 samples"):
        data[3]


def test_splits_and_seeds_are_streams_of_their_own():
    def sample(split, seed):
        return build_dataset("enso", split, length=2, seed=seed)[1][0]

    streams = [sample(split, seed) for split in ("train", "val", "test") for seed in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(streams) for b in streams[:i])
    assert torch.equal(streams[0], sample("train", 0))


def test_workers_load_the_same_batches():
    data = build_dataset("moving_mnist", "train", length=4)
    assert torch.equal(pickle.loads(pickle.dumps(data))[3][1], data[3][1])
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1)
    assert torch.equal(next(iter(loader))[0][1], data[1][0])


@pytest.mark.parametrize("task", TASKS)
def test_open_without_files_names_the_folder(tmp_path, task):
    assert files_found(task, tmp_path) is None
    with pytest.raises(DataFileError, match=f"{tmp_path}: found no files of task '{task}'"):
        get_task(task).open(get_task(task).spec, "train", tmp_path)


def test_nothing_is_generated_below_a_root(tmp_path):
    with pytest.raises(DataFileError, match=r"nowhere: no such folder"):
        build_dataset("taxibj", "train", root=tmp_path / "nowhere")
    with pytest.raises(DataFileError, match="found no files of task 'taxibj'"):
        build_dataset("taxibj", "train", root=tmp_path)
    assert {row["source"] for row in task_table(tmp_path)} == {"no files"}


def test_table_has_one_row_a_task():
    rows = task_table()
    assert [row["name"] for row in rows] == list(TASKS)
    assert rows[7] == {
        "name": "kitti",
        "title": "KITTI",
        "discipline": "driving",
        "frame": "3x128x160",
        "frames": "10 -> 10",
        "patch": 8,
        "tokens": 320,
        "source": "generated",
    }
