"""What is made of one's own files: breaks in time, splits, missing values, what is left out and said."""

import numpy as np
import pytest
from support.forms.own import moving_frames, write_frames, write_hdf5, write_npy
from support.own import described, split_of, values

from unistd.tasks import DataFileError

FRAMES = moving_frames(40)
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISTD_CACHE", str(tmp_path / "cache"))


def times_in(data):
    """The numbers of the frames of every sample: each has a first pixel of its own row of noise."""
    firsts = {frame.tobytes(): number for number, frame in enumerate(FRAMES)}
    samples = [values(data[index], data.spec).round().astype(np.uint8)[:, 0] for index in range(len(data))]
    return [[firsts[frame.tobytes()] for frame in sample] for sample in samples]


def test_splits_by_time_share_no_frame(tmp_path):
    write_npy(tmp_path, FRAMES)
    keys = {"files": "frames.npy", "splits": {"val": 0.25, "test": 0.15}}
    seen = {split: times_in(split_of(tmp_path, split, **keys)) for split in SPLITS}
    assert {split: (np.min(rows), np.max(rows)) for split, rows in seen.items()} == {
        "train": (0, 23),
        "val": (24, 33),
        "test": (34, 39),
    }
    assert seen["test"] == [[34, 35, 36, 37], [35, 36, 37, 38], [36, 37, 38, 39]]
    keys["splits"] = {"val": 0.25, "test": 0.25}
    steps = times_in(split_of(tmp_path, step=3, stride=5, **keys))
    assert steps == [[0, 3, 6, 9], [5, 8, 11, 14], [10, 13, 16, 19]]


NAMES = {
    "a counter": lambda time: f"view2_{time}",
    "stamps": lambda time: f"2016{9 + time // 30:02d}{time % 30 + 1:02d}_radar1",
    "stamps in parts": lambda time: f"radar-2016-02-{time // 24 + 1:02d}-{time % 24:02d}",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_missing_picture_is_a_break(tmp_path, kind):
    names = [NAMES[kind](time) for time in range(40)]
    kept = [time for time in range(40) if time != 10]
    write_frames(tmp_path, FRAMES[kept], [names[time] for time in kept])
    data = split_of(tmp_path, files="frames/*.png")
    assert {9, 10, 11}.isdisjoint(set(np.ravel([rows[0] for rows in times_in(data)])) - {11})
    assert all(max(rows) < 10 or min(rows) > 10 for rows in times_in(data))
    assert data.notes == ("1 breaks in time, which no sample crosses",)


def test_dates_in_names_are_read_as_said(tmp_path):
    write_frames(tmp_path, FRAMES, [f"r_{1 + day % 28:02d}.{1 + day // 28:02d}.2020" for day in range(40)])
    assert times_in(split_of(tmp_path, files="frames/*.png", time="%d.%m.%Y", stride=100)) == [[0, 1, 2, 3]]
    with pytest.raises(DataFileError, match=r"r_01\.01\.2020\.png: its name has no time of the form '%Y-%m-%d'"):
        described(tmp_path, files="frames/*.png", time="%Y-%m-%d")


def test_a_gap_a_repeated_stamp_and_a_jump_back_are_breaks(tmp_path):
    hours = [*range(8), *range(10, 20), 19, *range(5, 26)]
    stamps = np.array([f"2020010{1 + hour // 24}{hour % 24:02d}" for hour in hours], "S10")
    write_hdf5(tmp_path, FRAMES, stamps)
    keys = {"files": "data.h5", "variable": "fields/rain", "time": "date"}
    pieces = [range(8), range(8, 18), [18], range(19, 40)]
    seen = {}
    for split in SPLITS:
        seen[split] = times_in(split_of(tmp_path, split, **keys))
        assert all(any(set(rows) <= set(piece) for piece in pieces) for rows in seen[split])
    held = {hours[row] for split in ("val", "test") for rows in seen[split] for row in rows}
    assert held.isdisjoint({hours[row] for rows in seen["train"] for row in rows}), "a stamp is in one split alone"


def test_months_are_no_breaks(tmp_path):
    stamps = np.array([f"{2000 + month // 12}{month % 12 + 1:02d}01" for month in range(40)], "S8")
    write_hdf5(tmp_path, FRAMES, stamps)
    assert split_of(tmp_path, files="data.h5", variable="fields/rain", time="date").notes == ()


def test_splits_by_named_files(tmp_path):
    for name, seed in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):
        write_npy(tmp_path / name, moving_frames(6, seed=seed))
    keys = {"files": "*/frames.npy", "splits": {"val": ["b/*"], "test": ["c/*", "d/*"]}}
    assert [len(split_of(tmp_path, split, **keys)) for split in SPLITS] == [3, 3, 6]
    found = values(split_of(tmp_path, "val", **keys)[0], described(tmp_path, **keys).spec("x"))
    np.testing.assert_allclose(found[:, 0], moving_frames(6, seed=2)[:4], atol=1e-3)
    for wrong, words in (
        ({"val": ["e/*"], "test": ["c/*"]}, "'e/*' fits none"),
        ({"val": ["c/*"], "test": ["*"]}, "one of them"),
    ):
        with pytest.raises(DataFileError) as error:
            split_of(tmp_path, files="*/frames.npy", splits=wrong)
        assert words in str(error.value)


def test_a_copy_under_another_name_is_in_one_split_alone(tmp_path):
    write_npy(tmp_path, moving_frames(12, seed=1), "a.npy")
    write_npy(tmp_path, moving_frames(12, seed=2), "b.npy")
    write_npy(tmp_path, moving_frames(12, seed=1), "copy_of_a.npy")
    splits = {"val": ["b.npy"], "test": ["copy*"]}
    with pytest.raises(DataFileError, match="every window of a split is in another split too"):
        split_of(tmp_path, files="*.npy", splits=splits)
    write_npy(tmp_path, moving_frames(12, seed=3), "c.npy")
    assert split_of(tmp_path, files="*.npy", splits=splits).notes[0].startswith("9 of 18 windows left out: they share")


def test_the_range_is_that_of_the_train_split(tmp_path):
    values_of = FRAMES.astype(np.float64)
    values_of[2, 0, 0] = 255.0
    values_of[35, 0, 0] = 300.0
    write_npy(tmp_path, values_of)
    assert described(tmp_path, files="frames.npy").range == [0.0, 255.0]
    values_of[3, 0, 0] = -40.0
    write_npy(tmp_path, values_of)
    assert described(tmp_path, files="frames.npy").range == [-40.0, 255.0]


def test_missing_values_are_not_measured(tmp_path):
    frames = FRAMES.copy()
    frames[:, :2] = 255
    frames[6] = 255
    write_npy(tmp_path, frames)
    data = split_of(tmp_path, files="frames.npy", missing=255, range="minmax")
    assert data.spec.missing
    assert data.spec.scale + data.spec.offset < 255
    assert np.isnan(data[0][0][:, 0, :2].numpy()).all()
    assert not np.isnan(data[0][0][:, 0, 2:].numpy()).all()
    assert len(data) == 21 - 4
    assert data.notes == ("4 of 21 windows left out: a frame in which nothing was measured",)


def test_days_of_zeros_are_left_out_of_training_and_said(tmp_path):
    frames = FRAMES.copy()
    frames[:10] = 0
    write_npy(tmp_path, frames)
    data = split_of(tmp_path, files="frames.npy")
    assert len(data) == 21 - 7
    assert data.notes == ("nothing changes in 7 of 21 windows, which are left out",)
    frames[30:] = 0
    write_npy(tmp_path, frames)
    assert split_of(tmp_path, "test", files="frames.npy").notes == ("nothing changes in 5 of 5 windows",)


def test_other_sizes_are_brought_to_the_tasks(tmp_path):
    write_npy(tmp_path, FRAMES)
    cropped = split_of(tmp_path, files="frames.npy", height=8, width=8, fit="crop")
    np.testing.assert_allclose(values(cropped[0], cropped.spec)[:, 0], FRAMES[:4, 2:10, 4:12], atol=1e-3)
    assert split_of(tmp_path, files="frames.npy", height=7, width=9)[0][0].shape == (2, 1, 7, 9)


REFUSED = {
    "no file": ({"files": "*.npx"}, "*.npx: found no files (but in"),
    "too short": ({"files": "frames.npy", "frames_in": 30}, "no sample in the train split", "expected at least 32"),
    "a value beyond the range": ({"files": "frames.npy", "range": [0, 1]}, "frames.npy: holds", "range [0, 1]"),
    "nothing changes": ({"files": "still.npy"}, "still.npy: the train split has values from 3 to 3"),
    "several forms": ({"files": ["frames.npy", "a.h5"]}, "files of hdf5 and npy, expected one form"),
    "no variable": ({"files": "a.h5"}, "a.h5: variable is null"),
    "another variable": ({"files": "a.h5", "variable": "rain"}, "a.h5: found keys ['fields']", "'rain'"),
    "a variable of npy": ({"files": "frames.npy", "variable": "x"}, "frames.npy: variable 'x', expected null"),
    "axes": ({"files": "frames.npy", "axes": "hwt"}, "frames.npy: array (40, 12, 16): axes 'hwt', expected time first"),
    "channels": ({"files": "frames.npy", "channels": 3}, "frames.npy: frames (4, 1, 12, 16), expected (4, 3, 12, 16)"),
    "few files": ({"files": "frames.npy", "splits": {"by": "file"}}, "1 files or folders, expected at least 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(tmp_path, case):
    write_npy(tmp_path, FRAMES)
    write_npy(tmp_path, np.full((40, 12, 16), 3.0), "still.npy")
    write_hdf5(tmp_path, FRAMES, name="a.h5")
    keys, *words = REFUSED[case]
    with pytest.raises(DataFileError) as error:
        split_of(tmp_path, **keys)[0]
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
