"""The commands `unistd data check` and `preview`: what they say, and what they write."""

import h5py
import numpy as np
import pytest
from PIL import Image
from support.forms.deepst import COUNTS, DATES
from support.refusal import assert_refused, run_command

from unistd.cli import main

NAME = "BJ16_M4x4_T30_InOut.h5"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data/taxibj").mkdir(parents=True)
    with h5py.File(tmp_path / "data/taxibj" / NAME, "w") as file:
        file["data"], file["date"] = np.kron(30.0 * COUNTS, np.ones((2, 2)))[:, :, :32, :32], DATES
    return tmp_path / "data"


def write_flows(root, counts):
    with h5py.File(root / "taxibj" / NAME, "w") as file:
        file["data"], file["date"] = (
            counts,
            np.array([f"201501{1 + n // 48:02d}{n % 48 + 1:02d}" for n in range(90)], "S10"),
        )


def test_check_says_what_is_there_and_where_the_rest_comes_from(root, capsys):
    write_flows(root, np.random.default_rng(0).integers(1, 900, (90, 2, 32, 32)).astype(float))
    assert main(["data", "check", "--data-root", str(root)]) == 0
    said = capsys.readouterr().out
    assert f"taxibj: {root / 'taxibj'}: 47 train, 11 val, 11 test\n" in said
    assert "2 x 32 x 32, 4 -> 4 frames, values 1 to 899 trips per 30 min, 1.0 is 1250" in said
    assert "sevir: nothing found. From registry.opendata.aws/sevir" in said
    assert "tasks found: 1 of 10; faults: 0" in said


def test_check_names_what_is_damaged_and_goes_on(root, capsys):
    counts = np.ones((90, 2, 32, 32))
    counts[5, 0, 0, 0] = -1
    write_flows(root, counts)
    assert main(["data", "check", "--data-root", str(root), "--quick"]) == 1
    said = capsys.readouterr()
    assert f"fault: {root / 'taxibj' / NAME}: 'data' holds -1.0 in row 5" in said.out
    assert "sevir: nothing found" in said.out
    assert said.err == f"unistd: error: {root}: faults in the data: 1\n"


def test_check_of_a_task_that_is_not_there(root):
    assert_refused(run_command("data", "check", "--data-root", root, "--task", "kth"), str(root), "no files of kth")


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["check", "--data-root", "/nowhere"], "/nowhere"),
        (["check", "--data-root", "DATA", "--task", "kht"], "kht"),
        (["prepare", "kth", "DATA", "OUT"], "DATA"),
        (["prepare", "kth", "DATA", "OUT", "--size", "hight=3"], "hight=3"),
        (["prepare", "kth", "DATA", "OUT", "--size", "height=many"], "height=many"),
        (["prepare", "kth", "DATA", "OUT", "--size", "height=0"], "height"),
        (["preview", "kht"], "kht"),
        (["preview", "kth", "--split", "tset"], "tset"),
        (["preview", "kth", "--data-root", "DATA"], "kth"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_is_wrong_is_named(root, tmp_path, words, culprit):
    places = {"DATA": str(root), "OUT": str(tmp_path / "out")}
    assert_refused(run_command("data", *(places.get(word, word) for word in words)), places.get(culprit, culprit))
    assert not (tmp_path / "out").exists()


def test_preview_draws_an_animation_and_a_sheet(tmp_path):
    assert (
        main(
            [
                "data",
                "preview",
                "kth",
                "--output",
                str(tmp_path),
                "--size",
                "height=32",
                "--size",
                "width=48",
                "--size",
                "frames_in=3",
            ]
        )
        == 0
    )
    with Image.open(tmp_path / "kth.gif") as animation, Image.open(tmp_path / "kth.png") as sheet:
        assert animation.n_frames == 13
        assert sheet.size == (12 * (48 * 2 + 2), 6 * (32 * 2 + 2))


def test_preview_draws_what_was_not_measured_in_grey(tmp_path):
    frames = np.random.default_rng(0).random((24, 8, 8)).astype(np.float32)
    frames[:, :4, :4] = np.nan
    np.save(tmp_path / "rain.npy", frames)
    description = tmp_path / "rain.yaml"
    description.write_text("files: rain.npy\naxes: thw\nmissing: true\nframes_in: 2\nframes_out: 2\n")
    words = ["--data-root", str(tmp_path), "--output", str(tmp_path)]
    assert main(["data", "preview", str(description), *words]) == 0
    with Image.open(tmp_path / "rain.png") as sheet:
        pixels = np.asarray(sheet)[:32, :32].reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) == 1
    assert len(set(pixels[0].tolist())) == 1
