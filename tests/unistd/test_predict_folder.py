"""`unistd predict` on a folder of files, and against the frames that came to be."""

import numpy as np
import pytest
from support.refusal import assert_refused, run_command

from unistd.cli import main
from unistd.training.run import open_run

SHAPE, TARGET = (3, 1, 16, 16), (2, 1, 16, 16)


def frames(seed, shape=SHAPE):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def words(run, source, output, *more):
    return ["predict", str(run), "--task", "kth", "--input", str(source), "--output", str(output), *map(str, more)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("day10", "day9", "b[1]")):
        np.save(tmp_path / "in" / f"{name}.npy", frames(seed, (seed + 1, *SHAPE)))
    (tmp_path / "in" / ".hidden").touch()
    return tmp_path / "in"


def test_each_file_of_a_folder_in_the_order_of_its_numbers(finished_run, folder, tmp_path, capsys):
    assert main(words(finished_run, folder, tmp_path / "out")) == 0
    said = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("forecast ")]
    assert said == ["b[1].npy", "day9.npy", "day10.npy"]
    for source in folder.glob("*.npy"):
        assert main(words(finished_run, source, tmp_path / "one.npy")) == 0
        assert np.array_equal(np.load(tmp_path / "out" / source.name), np.load(tmp_path / "one.npy"))
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_forecasts_that_are_there_stay(finished_run, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "day9.npy").write_bytes(b"another one")
    assert_refused(run_command(*words(finished_run, folder, tmp_path / "out")), "out/day9.npy: is there already")
    assert_refused(run_command(*words(finished_run, folder, folder)), "in/b[1].npy: is there already")
    assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"another one"]
    (tmp_path / "out" / "day9.npy").rename(tmp_path / "out" / "day10.gif")
    outcome = run_command(*words(finished_run, folder, tmp_path / "out", "--gif"))
    assert_refused(outcome, "out/day10.gif: is there already")


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda folder: (folder / "notes.txt").touch(), "expected .npy files alone, found 'notes.txt'"),
        (lambda folder: [file.unlink() for file in folder.glob("*.npy")], "found no .npy file in it"),
        (lambda folder: np.save(folder / "z.npy", frames(0, (2, 1, 16, 16))), "z.npy: expected shape (3, 1, 16, 16)"),
    ],
    ids=["another kind", "no file", "another shape"],
)
def test_a_folder_that_is_not_of_frames_is_refused_as_a_whole(finished_run, folder, tmp_path, spoil, culprit):
    spoil(folder)
    assert_refused(run_command(*words(finished_run, folder, tmp_path / "out")), str(folder), culprit)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("units", ["normalised", "physical"])
@pytest.mark.parametrize("count", [2, 5])
def test_errors_per_frame_in_the_tasks_unit(finished_run, tmp_path, capsys, units, count):
    spec = open_run(finished_run)[2].tasks["kth"]
    factor = spec.scale if units == "physical" else 1
    truth = frames(1, (20, count, *TARGET[1:]))
    np.save(tmp_path / "in.npy", frames(0, (20, *SHAPE)) * factor)
    np.save(tmp_path / "truth.npy", truth * factor)
    more = ("--truth", tmp_path / "truth.npy", "--units", units, "--frames", count)
    assert main(words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy", *more)) == 0
    title, *rows = capsys.readouterr().out.splitlines()[1:]
    assert f"mse, squared {spec.unit}" in title
    squares = ((np.load(tmp_path / "out.npy") / factor - truth) * spec.scale).astype(np.float64) ** 2
    expected = [*squares.mean((0, 2, 3, 4)), squares.mean()]
    assert [row.split()[0] for row in rows] == [*map(str, range(1, count + 1)), "all"]
    assert [float(row.split()[1]) for row in rows] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("truth", "culprit"),
    [
        (frames(1, (3, 1, 16, 16)), "truth.npy: expected the forecast's shape (2, 1, 16, 16), found (3, 1, 16, 16)"),
        (frames(1, TARGET) * np.nan, "truth.npy: expected floats in [0, 1], found"),
        (frames(1, TARGET) * 255, "truth.npy: expected floats in [0, 1], found"),
    ],
    ids=["another shape", "NaN", "another unit"],
)
def test_a_truth_that_is_none_is_refused(finished_run, tmp_path, truth, culprit):
    np.save(tmp_path / "in.npy", frames(0))
    np.save(tmp_path / "truth.npy", truth)
    outcome = run_command(
        *words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy", "--truth", tmp_path / "truth.npy")
    )
    assert_refused(outcome, culprit)


def test_a_folder_has_no_one_truth(finished_run, folder, tmp_path):
    outcome = run_command(*words(finished_run, folder, tmp_path / "out", "--truth", tmp_path / "truth.npy"))
    assert_refused(outcome, "--truth takes one --input file")
