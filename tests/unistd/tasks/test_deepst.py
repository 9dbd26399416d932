"""TaxiBJ from DeepST's HDF5 files: windows, splits, scale, and files that are not as they should be."""

import datetime
import itertools
import pickle
import shutil
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.bad_files import refusal

from unistd.tasks import SPLITS, DataFileError, build_dataset, files_found, get_task
from unistd.tasks.deepst import read_flow_record

SPEC = get_task("taxibj").spec.replace(height=4, width=2, frames_in=2, frames_out=3, patch=2)
NYC = sorted((Path(__file__).parents[4] / "shared/data/taxinyc").glob("*.h5"))


def half_hours(start, count):
    """`count` DeepST stamps from slot `start` of 2015-01-31 on, half an hour apart."""
    days, slots = np.divmod(np.arange(start - 1, start - 1 + count), 48)
    dates = [datetime.date(2015, 1, 31) + datetime.timedelta(days=int(day)) for day in days]
    return [f"{date:%Y%m%d}{slot + 1:02d}" for date, slot in zip(dates, slots, strict=True)]


def write(path, stamps, counts=None):
    """A DeepST file; counts default to the number of the row in every cell."""
    if counts is None:
        counts = np.broadcast_to(np.arange(len(stamps), dtype=np.float64)[:, None, None, None], (len(stamps), 2, 4, 2))
    with h5py.File(path, "w") as file:
        file["data"], file["date"] = counts, np.array(stamps, "S10")
    return path


def first_rows(data):
    """The row in which each window starts, after checking that its rows follow one another."""
    firsts = []
    for inputs, targets in (data[i] for i in range(len(data))):
        rows = np.concatenate([inputs, targets])[:, 0, 0, 0] * data.spec.scale
        assert np.allclose(np.diff(rows), 1, atol=1e-3)
        firsts.append(round(float(rows[0])))
    return firsts


def test_windows_never_cross_a_break_in_the_dates(tmp_path):
    # 20 rows over midnight and the end of the month; a gap; a repeated stamp; a jump back.
    stamps = half_hours(40, 20) + half_hours(62, 10)
    stamps += [stamps[-1], *half_hours(80, 9), *half_hours(22, 10)]
    write(tmp_path / "BJ15_M4x2_T30_InOut.h5", stamps)
    runs = [range(0, 20), range(20, 30), range(31, 40), range(40, 50)]
    expected = {run.start + i for run in runs for i in range(len(run) - 4)}
    found = [first_rows(build_dataset(SPEC, split, root=tmp_path)) for split in ("train", "val", "test")]
    # 50 rows: test the last fifth, val the fifth before it, and no window over a border.
    for rows, split in zip((range(0, 30), range(30, 40), range(40, 50)), found, strict=True):
        assert split == sorted(start for start in expected if start in rows and start + 4 in rows)


def test_windows_whose_dates_another_split_has_are_left_out_of_train(tmp_path):
    # 50 rows, the last ten of which (test) have the dates of rows 4 to 13; and the same again as a copy of the file
    stamps = half_hours(40, 40) + half_hours(44, 10)
    write(tmp_path / "BJ15_M4x2_T30_InOut.h5", stamps)
    train = build_dataset(SPEC, "train", root=tmp_path)
    assert first_rows(train) == list(range(14, 26))
    assert train.notes == ("14 of 26 windows left out: they share frames with another split",)
    assert build_dataset(SPEC, "test", root=tmp_path).notes == ()
    # the copy moves all that the splits are shares of
    shutil.copy(tmp_path / "BJ15_M4x2_T30_InOut.h5", tmp_path / "BJ16_M4x2_T30_InOut.h5")
    assert "every window of a split is in another split too" in refusal(
        tmp_path, partial(build_dataset, root=tmp_path), SPEC, "train"
    )


def test_the_scale_is_that_of_the_train_split(tmp_path):
    counts = np.ones((50, 2, 4, 2))
    counts[29], counts[30:] = 2000, 9000
    write(tmp_path / "BJ15_M4x2_T30_InOut.h5", half_hours(1, 50), counts)
    data = [build_dataset(SPEC, split, root=tmp_path) for split in SPLITS]
    assert [part.spec.scale for part in data] == [2000] * 3
    assert float(data[2][0][0].max()) == 4.5


def test_hourly_stamps_run_from_00_to_23(tmp_path):
    stamps = [f"2010010{day}{hour:02d}" for day in (1, 2) for hour in range(24)]
    write(tmp_path / "NYC10_Taxi_M4x2_T60_InOut.h5", stamps)
    assert first_rows(build_dataset(SPEC, "train", root=tmp_path)) == list(range(48 - 18 - 4))


def test_the_last_four_weeks_are_the_test_split(tmp_path):
    start = datetime.datetime(2015, 1, 1)
    stamps = [(start + datetime.timedelta(hours=h)).strftime("%Y%m%d%H") for h in range(200 * 24)]
    write(tmp_path / "City_M4x2_T60_InOut.h5", stamps)
    sizes = {split: len(build_dataset(SPEC, split, root=tmp_path)) for split in ("train", "val", "test")}
    assert sizes == {"train": 144 * 24 - 4, "val": 28 * 24 - 4, "test": 28 * 24 - 4}


def test_files_of_several_years_stand_in_order_and_windows_stay_in_one(tmp_path):
    folder = tmp_path / "taxibj"
    folder.mkdir()
    late = [f"20160301{slot:02d}" for slot in range(1, 21)]
    write(folder / "BJ13_M4x2_T30_InOut.h5", late, np.full((20, 2, 4, 2), 7.0))  # sorted by stamp, not by name
    write(folder / "BJ16_M4x2_T30_InOut.h5", [s.replace("2016", "2013") for s in late], np.full((20, 2, 4, 2), 3.0))
    data = build_dataset(SPEC.replace(scale=10.0), "train", root=tmp_path)
    assert files_found("taxibj", tmp_path) == data.source == str(folder)
    # Train is rows 0 to 23: all of the earlier file, and too few of the later one for a window.
    assert [round(float(data[i][1].mean()), 4) for i in range(len(data))] == [0.3] * 16
    test = build_dataset(SPEC.replace(scale=10.0), "test", root=tmp_path)
    assert [round(float(test[i][0].mean()), 4) for i in range(len(test))] == [0.7] * 4


def test_counts_are_scaled_by_the_task_or_by_a_larger_maximum(tmp_path):
    path = write(tmp_path / "BJ16_M4x2_T30_InOut.h5", half_hours(1, 40))
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert data.spec == SPEC
    assert data[3][0][0, 0, 0, 0] == np.float32(3 / 1250)
    path.unlink()
    write(path, half_hours(1, 40), np.full((40, 2, 4, 2), 1292.0))
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert data.spec == SPEC.replace(scale=1292.0)
    assert (data[0][1] == 1).all()


def test_length_spreads_samples_over_the_split(tmp_path):
    write(tmp_path / "BJ16_M4x2_T30_InOut.h5", half_hours(1, 70))
    assert len(build_dataset(SPEC, "train", root=tmp_path)) == 38
    assert first_rows(build_dataset(SPEC, "train", root=tmp_path, length=4)) == [0, 9, 19, 28]


COUNTS = np.ones((30, 2, 4, 2))
BROKEN = {
    "text for numbers": (lambda f: replace(f, "data", np.full((30, 2, 4, 2), b"x")), r"'data' is \|S1 \(30, 2, 4, 2\)"),
    "group": (lambda f: (f.pop("data"), f.create_group("data")), r"found keys \['data', 'date'\], expected data sets"),
    "missing key": (lambda f: f.pop("date"), r"found keys \['data'\], expected data sets 'data' and"),
    "no flows": (
        lambda f: replace(f, "data", COUNTS[:, :1]),
        r"'data' is float64 \(30, 1, 4, 2\), expected numbers \(n, 2, H, W\)",
    ),
    "grid": (
        lambda f: replace(f, "data", COUNTS[:, :, :3]),
        r"\(30, 2, 3, 2\), expected \(n, 2, 4, 2\) as the task's spec",
    ),
    "dates short": (
        lambda f: replace(f, "data", COUNTS[:9]),
        r"'date' has shape \(30,\), expected one for each of the 9 rows",
    ),
    "nan": (lambda f: put(f, "data", np.nan), r"'data' holds nan in row 7, expected counts >= 0"),
    "negative": (lambda f: put(f, "data", -3.0), r"'data' holds -3\.0 in row 7, expected counts >= 0"),
    "no date": (lambda f: put(f, "date", b"2015023001"), r"'date' holds '2015023001' in row 7, expected yyyymmdd"),
    "slot": (lambda f: put(f, "date", b"2015020149"), r"'date' holds '2015020149' in row 7, .* a slot up to 48"),
    "text": (lambda f: put(f, "date", b"yesterday"), r"'date' holds 'yesterday' in row 7"),
}


def replace(file, key, value):
    del file[key]
    file[key] = value


def put(file, key, value):
    file[key][7] = value


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_with_what_was_found(tmp_path, case):
    path = write(tmp_path / "BJ16_M4x2_T30_InOut.h5", half_hours(1, 30), COUNTS)
    damage, message = BROKEN[case]
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(DataFileError, match=message) as error:
        build_dataset(SPEC, "train", root=tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = write(tmp_path / "BJ16_M4x2_T30_InOut.h5", half_hours(1, 400))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataFileError, match="not a readable HDF5 file") as error:
        build_dataset(SPEC, "test", root=tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 40 * 16 * 4], ids=["none", "one of two"])
def test_counts_that_are_too_many_for_the_memory_are_read_as_they_are_needed(tmp_path, monkeypatch, kept):
    for year, first in (("15", 0), ("16", 40)):
        stamps = [stamp.replace("2015", f"20{year}") for stamp in half_hours(1, 40)]
        rows = np.arange(first, first + 40, dtype=np.int16)[:, None, None, None]
        write(tmp_path / f"BJ{year}_M4x2_T30_InOut.h5", stamps, np.broadcast_to(rows * 20, (40, 2, 4, 2)))
    right = [build_dataset(SPEC, split, root=tmp_path) for split in SPLITS]
    monkeypatch.setattr("unistd.tasks.deepst._LARGEST_KEPT", kept)
    monkeypatch.setenv("UNISTD_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the index
        for expected, split in zip(right, SPLITS, strict=True):
            data = pickle.loads(pickle.dumps(build_dataset(SPEC, split, root=tmp_path)))
            assert (len(data), data.spec) == (len(expected), expected.spec)
            for index in range(len(data)):
                np.testing.assert_array_equal(np.concatenate(data[index]), np.concatenate(expected[index]))
    assert len(list((tmp_path / "cache").iterdir())) == 2 - bool(kept)


def test_a_split_without_a_window_is_an_error(tmp_path):
    write(tmp_path / "BJ16_M4x2_T30_InOut.h5", half_hours(1, 20))
    with pytest.raises(DataFileError, match="no 5 rows in a row without a break in the dates in the test split"):
        build_dataset(SPEC, "test", root=tmp_path)


def test_files_of_other_intervals_are_not_mixed(tmp_path):
    write(tmp_path / "BJ15_M4x2_T30_InOut.h5", [stamp.replace("2015", "2014") for stamp in half_hours(1, 20)])
    path = write(tmp_path / "BJ16_M4x2_T60_InOut.h5", half_hours(1, 20))
    with pytest.raises(DataFileError, match=f"{path}: 24 intervals a day, expected 48 as in BJ15"):
        build_dataset(SPEC, "train", root=tmp_path)


@pytest.mark.parametrize("name", ["BJ16.h5", "BJ16_M4x2_T7_InOut.h5"])
def test_the_interval_must_be_in_the_name(tmp_path, name):
    path = write(tmp_path / name, half_hours(1, 20))
    with pytest.raises(DataFileError, match=r"expected a (name like|divisor of 1440)"):
        read_flow_record(path)


def made(folder):
    """An hourly file as broken as the published ones: a day twice, then a month missing."""
    start = datetime.datetime(2011, 3, 1)
    hours = [*range(32 * 24), *range(30 * 24, 60 * 24), *range(90 * 24, 120 * 24)]
    stamps = [(start + datetime.timedelta(hours=h)).strftime("%Y%m%d%H") for h in hours]
    return write(
        folder / "NYC11_Taxi_M16x8_T60_InOut.h5", stamps, np.random.default_rng(0).poisson(90.0, (len(hours), 2, 16, 8))
    )


@pytest.mark.parametrize("source", [None, *NYC], ids=lambda path: path.name[:5] if path else "made")
def test_new_york_with_its_broken_time_axis(tmp_path, source):
    path = source or made(tmp_path)
    if source:
        (tmp_path / path.name).symlink_to(path)
    with h5py.File(path) as file:
        counts, stamps = file["data"][:], file["date"].asstr()[:]
    times = [datetime.datetime.strptime(stamp, "%Y%m%d%H") for stamp in stamps]
    hour = datetime.timedelta(hours=1)
    held_out = min(28 * 24, len(times) // 5)
    follows = [later - earlier == hour for earlier, later in itertools.pairwise(times)]
    expected = [i for i in range(len(times) - 2 * held_out - 7) if all(follows[i : i + 7])]
    spec = get_task("taxibj").spec.replace(height=16, width=8)
    data = build_dataset(spec, "train", root=tmp_path)
    assert len(data) == len(expected)
    assert data.spec.scale == max(1250.0, counts[: len(times) - 2 * held_out].max()), "of the train split alone"
    for i in np.linspace(0, len(data) - 1, 25).astype(int):
        window = counts[expected[i] : expected[i] + 8] / data.spec.scale
        assert np.allclose(np.concatenate(data[i]), window, atol=1e-6)
