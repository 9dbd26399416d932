"""`unistd predict` in a pipe: arrays from standard input, forecasts to standard output."""

import io
import subprocess
import sys

import numpy as np
import pytest

from unistd.cli import main

SHAPES = ((3, 1, 16, 16), (5, 3, 1, 16, 16), (3, 1, 16, 16))
ARRAYS = [np.random.default_rng(seed).random(shape).astype(np.float32) for seed, shape in enumerate(SHAPES)]


def saved(*arrays):
    file = io.BytesIO()
    for array in arrays:
        np.save(file, array)
    return file.getvalue()


def words(run, source, output):
    return ["predict", str(run), "--task", "kth", "--input", str(source), "--output", str(output)]


@pytest.fixture
def expected(finished_run, tmp_path):
    found = []
    for array in ARRAYS:
        np.save(tmp_path / "in.npy", array)
        assert main(words(finished_run, tmp_path / "in.npy", tmp_path / "one.npy")) == 0
        found.append((tmp_path / "one.npy").read_bytes())
    return found


def test_arrays_through_a_pipe(finished_run, expected):
    command = [sys.executable, "-m", "unistd", *words(finished_run, "-", "-")]
    order = (ARRAYS[0], np.asfortranarray(ARRAYS[1].astype(">f8")), ARRAYS[2])
    done = subprocess.run(command, input=saved(*order), capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    found = io.BytesIO(done.stdout)
    for array in expected:
        np.testing.assert_allclose(np.load(found), np.load(io.BytesIO(array)), atol=1e-6)
    assert found.read() == b""


def stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_arrays_into_a_file(finished_run, tmp_path, monkeypatch, capsys, expected):
    stdin(monkeypatch, saved(*ARRAYS))
    assert main(words(finished_run, "-", tmp_path / "out")) == 0
    assert (tmp_path / "out.npy").read_bytes() == b"".join(expected)
    assert "forecasts of 3 arrays" in capsys.readouterr().out


GOOD = saved(ARRAYS[0])


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"", "standard input, array 1: not a .npy file of numbers"),
        (b"text\n", "standard input, array 1: not a .npy file of numbers"),
        (GOOD + b"text\n", "standard input, array 2: not a .npy file of numbers"),
        (GOOD + GOOD[:-4], "standard input, array 2: 3068 bytes after the header, expected 3072"),
        (GOOD + saved(np.array(["a"])), "standard input, array 2: expected numbers"),
        (GOOD + saved(ARRAYS[0][1:]), "standard input, array 2: expected shape (3, 1, 16, 16) or (B, "),
        (saved(ARRAYS[0] * np.nan), "standard input, array 1: expected floats in [0, 1]"),
    ],
    ids=["nothing", "text", "text after an array", "cut", "texts", "another shape", "NaN"],
)
def test_what_is_no_array_is_refused(finished_run, tmp_path, monkeypatch, capsys, content, culprit):
    stdin(monkeypatch, content)
    assert main(words(finished_run, "-", tmp_path / "out.npy")) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"unistd: error: {culprit}"), errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_stream_has_no_truth(finished_run, tmp_path, capsys):
    assert main([*words(finished_run, "-", tmp_path / "out.npy"), "--truth", "t.npy"]) == 1
    assert "--truth and --gif take files" in capsys.readouterr().err
