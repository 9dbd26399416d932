"""`unistd data check` on one tiny file set of each of the ten tasks, whole, and with one of them damaged."""

from pathlib import Path

import pytest
from support.forms.every import WRITERS, write_all

from unistd.cli import main
from unistd.tasks import TASKS

DAMAGED = {
    "taxibj": "taxibj/*.h5",
    "traffic4cast": "traffic4cast/*/training/*.h5",
    "moving_mnist": "moving_mnist/train-*.gz",
    "bair": "bair/train.npy",
    "human36m": "human/images/*.jpg",
    "kth": "kth/*/*/image_*.jpg",
    "cityscapes": "**/shard_*.hdf5",
    "kitti": "kitti/*/*.png",
    "sevir": "sevir/data/**/*.h5",
    "enso": "enso_round1_train_20210201/CMIP_train.nc",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ten")
    write_all(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISTD_CACHE", str(tmp_path / "cache"))


def check(root, capsys, *words):
    status = main(["data", "check", "--quick", "--data-root", str(root), *words])
    return status, capsys.readouterr()


def test_ten_are_found(root, capsys):
    status, said = check(root, capsys)
    assert status == 0, said.out
    assert "tasks found: 10 of 10; faults: 0\n" in said.out
    assert list(WRITERS) == list(DAMAGED) == list(TASKS)


@pytest.mark.parametrize("task", DAMAGED)
def test_a_damaged_file_is_named(root, capsys, task):
    path = sorted(root.glob(DAMAGED[task]))[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    try:
        status, said = check(root, capsys, "--task", task)
    finally:
        path.write_bytes(content)
    assert status == 1
    assert f"fault: {path}" in said.out, said.out
    assert said.err.count("\n") == 1
    assert f"{root}: faults in the data: " in said.err
