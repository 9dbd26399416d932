"""`unistd data prepare`: the same samples as of the published files, after any interruption; and damage to them."""

import json
from functools import partial

import h5py
import numpy as np
import pytest
from support.bad_files import refusal

from unistd.data.prepare import prepare
from unistd.tasks import SPLITS, DataFileError, build_dataset, get_task
from unistd.tasks.readers import clips as clips_module
from unistd.tasks.readers.clips import Clip, ClipDataset, cut, every
from unistd.tasks.readers.fit import as_stored

SPEC = get_task("taxibj").spec.replace(height=4, width=4, frames_in=2, frames_out=3)


@pytest.fixture
def source(tmp_path):
    """DeepST files of 60 and 50 rows with a gap between them."""
    for name, first, rows in (("BJ13", 1, 60), ("BJ14", 100, 50)):
        days, slots = np.divmod(np.arange(first - 1, first - 1 + rows), 48)
        stamps = [f"201501{day + 1:02d}{slot + 1:02d}" for day, slot in zip(days, slots, strict=True)]
        counts = np.random.default_rng(rows).integers(0, 2000, (rows, 2, 4, 4))
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        with h5py.File(folder / f"{name}_M4x4_T30_InOut.h5", "w") as file:
            file["data"], file["date"] = counts.astype(float), np.array(stamps, "S10")
    return folder


def write(source, target):
    done = []
    folder = prepare(SPEC, source, target, done.append, done.append)
    assert done[0] == sum(done[1:])
    return folder


def test_prepared_samples_are_those_of_the_files(source, tmp_path):
    folder = write(source, tmp_path / "target")
    for split in SPLITS:
        before = build_dataset(SPEC, split, root=source)
        after = build_dataset(SPEC, split, root=tmp_path / "target")
        assert (after.spec, len(after), after.source) == (before.spec, len(before), str(folder))
        for a, b in zip(
            map(before.__getitem__, range(len(before))), map(after.__getitem__, range(len(after))), strict=True
        ):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert len(build_dataset(SPEC, "train", root=tmp_path / "target", length=3)) == 3
    with pytest.raises(ValueError, match="holds prepared data already"):
        write(source, tmp_path / "target")


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_any_stride_and_step(tmp_path, monkeypatch, stride, step):
    values = np.random.default_rng(0).integers(0, 256, (3, 40, 2, 4, 4), np.uint8)
    records = [Clip(str(n), 40, partial(_rows, array)) for n, array in enumerate(values)]
    data = {s: ClipDataset(SPEC, [c], cut([c], 5, every(stride), step), "here", as_stored)
            for s, c in zip(SPLITS, records, strict=True)}  # fmt: skip
    monkeypatch.setattr("unistd.data.prepare.build_dataset", lambda spec, split, root: data[split])
    write(tmp_path, tmp_path / "target")
    for split in SPLITS:
        after = build_dataset(SPEC, split, root=tmp_path / "target")
        assert len(after) == len(data[split])
        for index in range(len(after)):
            assert np.array_equal(after[index][0], data[split][index][0])
            assert np.array_equal(after[index][1], data[split][index][1])


def _rows(array, rows):
    return array[rows]


@pytest.mark.parametrize("stop_after", range(5))
def test_it_goes_on_where_it_was_interrupted(source, tmp_path, monkeypatch, stop_after):
    whole = write(source, tmp_path / "whole")
    calls, read = [], clips_module.fitted

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == stop_after + 1:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr("unistd.data.prepare._BLOCK", 4 * 2 * 16 * 10)
    monkeypatch.setattr("unistd.data.prepare.fitted", stopping)
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "target")
    assert not (tmp_path / "target/taxibj/prepared.json").exists()
    for part in (tmp_path / "target/taxibj").glob("*.part"):
        with part.open("ab") as file:
            file.write(b"\1\2\3")  # a frame that a killed writer left half-written
    folder = write(source, tmp_path / "target")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (whole / path.name).read_bytes(), path.name


DAMAGE = {
    "frames cut": ("train-frames.npy", lambda content: content[:-1]),
    "frames of another type": ("train-frames.npy", lambda content: content.replace(b"<f4", b"<i4")),
    "starts cut": ("train-starts.npy", lambda content: content[:-8]),
    "starts beyond": ("train-starts.npy", lambda content: content[:-1] + b"\x7f"),
    "no JSON": ("prepared.json", lambda content: content[:-9]),
    "empty": ("prepared.json", lambda content: b""),
    "another task": ("prepared.json", lambda content: content.replace(b"taxibj", b"kth")),
    "another size": ("prepared.json", lambda content: content.replace(b'"height": 4', b'"height": 5')),
    "no scale": ("prepared.json", lambda content: content.replace(b'"scale"', b'"scales"')),
    "a list": ("prepared.json", lambda content: b"[]"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_prepared_files_that_were_damaged(source, tmp_path, name, damage):
    path = write(source, tmp_path / "target") / name
    path.write_bytes(damage(path.read_bytes()))
    refusal(f"{path}: ", partial(build_dataset, root=tmp_path / "target"), SPEC, "train")


def test_missing_parts_and_other_frame_counts_are_named(source, tmp_path):
    folder = write(source, tmp_path / "target")
    opened = partial(build_dataset, root=tmp_path / "target")
    assert "prepared with frames 5, expected 6" in refusal(folder, opened, SPEC.replace(frames_out=4), "train")
    assert len(opened(SPEC.replace(frames_in=3, frames_out=2), "train")) > 0
    (folder / "test-frames.npy").unlink()
    refusal(folder / "test-frames.npy", opened, SPEC, "test")
    assert json.loads((folder / "prepared.json").read_text())["scale"] == opened(SPEC, "train").spec.scale


def test_samples_that_are_put_together_are_not_prepared(tmp_path):
    with pytest.raises((ValueError, DataFileError)):
        prepare(get_task("moving_mnist").spec, tmp_path, tmp_path / "target", print, print)
