"""Clips: windows, frames by rows, splits kept apart by what is in them, and the index that is kept of slow files."""

from functools import partial

import numpy as np
import pytest

from unistd.tasks import DataFileError, get_task
from unistd.tasks.files import stamp_of
from unistd.tasks.readers.clips import Clip, ClipDataset, content_id, cut, every, file_id
from unistd.tasks.readers.fit import as_stored, centre_crop, cover, resize
from unistd.tasks.readers.index import cache_folder, indexed

SPEC = get_task("kth").spec.replace(height=8, width=8, patch=4, frames_in=2, frames_out=2)


def rows_of(values, rows):
    return np.broadcast_to(np.asarray(values, np.uint8)[rows, None, None, None], (len(rows), 1, 8, 8))


def clip(values, ids=None, name="clip"):
    return Clip(name, len(values), partial(rows_of, values), None if ids is None else partial(np.asarray, ids))


def dataset(*clips, stride=1, step=1):
    return ClipDataset(SPEC, clips, cut(clips, 4, every(stride), step), "here", as_stored)


def firsts(data):
    return [round(float(data[index][0][0, 0, 0, 0]) * 255) for index in range(len(data))]


def test_windows_lie_within_clips_at_every_stride_and_step():
    data = dataset(clip(range(10)), clip(range(20, 23)), clip(range(30, 38)), stride=2, step=2)
    assert firsts(data) == [0, 2, 30]
    inputs, targets = data[1]
    assert (inputs[:, 0, 0, 0] * 255).round().tolist() == [2, 4]
    assert (targets[:, 0, 0, 0] * 255).round().tolist() == [6, 8]


def test_a_copy_under_another_name_is_left_out():
    train = dataset(clip(range(8)), clip(range(40, 48)))
    test = dataset(clip(range(40, 48), name="another name"))
    kept = train.apart(test)
    assert firsts(kept) == [0, 1, 2, 3, 4]
    assert kept.notes == ("5 of 10 windows left out: they share frames with another split",)
    assert train.apart(dataset(clip(range(9)))) is train  # another length, another clip


def test_windows_that_overlap_by_their_ids_are_left_out():
    record = clip(range(20), ids=range(100, 120))
    train = dataset(record)
    test = ClipDataset(SPEC, [record], cut([record], 4, lambda room: [10]), "here", as_stored)
    assert firsts(train.apart(test)) == [*range(7), 14, 15, 16]
    assert firsts(train.apart(test, dataset(clip(range(4), ids=range(100, 104))))) == [4, 5, 6, 14, 15, 16]


def test_nothing_left_is_an_error():
    with pytest.raises(DataFileError, match="here: every window of a split is in another split too"):
        dataset(clip(range(8))).apart(dataset(clip(range(8))))


def test_frames_of_another_size_or_without_a_number_name_the_clip():
    spec = SPEC.replace(height=12)
    data = ClipDataset(spec, [clip(range(4))], cut([clip(range(4))], 4, every(1)), "here", as_stored)
    with pytest.raises(DataFileError, match=r"^clip: frames \(4, 1, 8, 8\), expected \(4, 1, 12, 8\)$"):
        data[0]
    holes = Clip("holes", 4, lambda rows: np.full((len(rows), 1, 8, 8), np.nan, np.float32))
    with pytest.raises(DataFileError, match=r"^holes: holds NaN or Inf"):
        ClipDataset(SPEC, [holes], cut([holes], 4, every(1)), "here", as_stored)[0]


def test_limited_spreads():
    assert firsts(dataset(clip(range(13))).limited(3)) == [0, 3, 6]


def test_fits():
    frames = np.arange(2 * 16 * 24, dtype=np.uint8).reshape(2, 1, 16, 24)
    assert np.array_equal(centre_crop(frames, SPEC), frames[..., 4:12, 8:16])
    assert np.array_equal(resize(np.full((1, 1, 16, 24), 7, np.uint8), SPEC), np.full((1, 1, 8, 8), 7))
    halves = np.repeat(np.repeat(np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8), 2, 2), 2, 3)
    assert np.abs(resize(halves, SPEC) - halves[..., ::2, ::2])[..., 1:-1, 1:-1].max() < 0.5
    assert cover(frames, SPEC).shape == (2, 1, 8, 8)


def test_pixels_without_a_number_are_left_out_of_means():
    frames = np.full((1, 1, 16, 16), 5.0, np.float32)
    frames[..., :9] = np.nan
    small = resize(frames, SPEC)[0, 0]
    assert np.isnan(small[:, :4]).all()
    np.testing.assert_allclose(small[:, 5:], 5.0, rtol=1e-6)


def test_ids_stand_for_content(tmp_path):
    assert content_id(b"ab", b"c") != content_id(b"a", b"bc")
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(bytes(200_000))
    second.write_bytes(bytes(200_000))
    assert file_id(first) == file_id(second) >= 0
    second.write_bytes(bytes(100_000) + b"\1" + bytes(99_999))
    assert file_id(first) != file_id(second)


def test_an_index_is_made_once_and_again_for_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISTD_CACHE", str(tmp_path / "cache"))
    file, calls = tmp_path / "file", []

    def find():
        with file.open("rb") as opened:
            stamp = stamp_of(opened)
        return indexed("lengths-1", [(file, stamp)], make)["length"]

    def make():
        calls.append(1)
        return {"length": np.array(file.stat().st_size)}

    file.write_bytes(b"abc")
    assert (find(), find(), len(calls)) == (3, 3, 1)
    file.write_bytes(b"abcd")
    assert (find(), len(calls)) == (4, 2)
    for kept in cache_folder().iterdir():
        kept.write_bytes(kept.read_bytes()[:50])
    assert (find(), find(), len(calls)) == (4, 4, 3)
    monkeypatch.setenv("UNISTD_CACHE", "/proc/nowhere")
    assert (find(), len(calls)) == (4, 4)
