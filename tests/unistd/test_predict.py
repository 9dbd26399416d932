"""`unistd predict`: what goes in and comes out, and that nothing is written where something is wrong."""

import contextlib
import io
import os
import resource
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from support.refusal import assert_refused, attempt, run_command
from support.special import NO_FILES, special

from unistd import UniSTD
from unistd.cli import main
from unistd.training.run import open_run

SHAPE = (3, 1, 16, 16)
GOOD = np.random.default_rng(0).random(SHAPE).astype(np.float32)


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(text, version=b"\x01\x00"):
    """The start of a .npy file with that text in the place of its header."""
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


def declared(descr="'<f4'", order=False, shape=SHAPE, content=None):
    content = GOOD.tobytes() if content is None else content
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}".encode()) + content


def archive():
    file = io.BytesIO()
    np.savez(file, GOOD)
    return file.getvalue()


def bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("arr_0.npy", bytes(1 << 24))
    return file.getvalue()


def words(run, source, output, task="kth"):
    return ["predict", str(run), "--task", task, "--input", str(source), "--output", str(output)]


def test_physical_units_go_in_and_come_out(finished_run, tmp_path):
    spec = open_run(finished_run)[2].tasks["kth"]
    assert (spec.scale, spec.offset) == (255, 0)
    for name, frames, units in (("own", GOOD, "normalised"), ("physical", GOOD * 255, "physical")):
        np.save(tmp_path / f"{name}.npy", frames)
        arguments = words(finished_run, tmp_path / f"{name}.npy", tmp_path / f"{name}_out.npy")
        assert main([*arguments, "--units", units]) == 0
    own, physical = (np.load(tmp_path / f"{name}_out.npy") for name in ("own", "physical"))
    assert np.allclose(own * 255, physical, atol=1e-2)
    assert np.abs(physical).max() > 2


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_forecast_of_any_length(finished_run, tmp_path, count):
    model = open_run(finished_run)[2]
    np.save(tmp_path / "in.npy", GOOD)
    assert main([*words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy"), "--frames", str(count)]) == 0
    found, frames = np.load(tmp_path / "out.npy"), torch.from_numpy(GOOD)[None]
    with torch.no_grad():
        while frames.shape[1] < 3 + count:
            frames = torch.cat([frames, model(frames[:, -3:].clamp(0, 1), task="kth")], 1)
    assert np.array_equal(found, frames[0, 3 : 3 + count].numpy())


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "many", "10001", "9" * 5000, "²"], ids=lambda text: text[:6])
def test_no_such_length(finished_run, tmp_path, count):
    np.save(tmp_path / "in.npy", GOOD)
    arguments = words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy")
    assert_refused(run_command(*arguments, "--frames", count), "--frames")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("frames", [GOOD * 600, GOOD - 300, GOOD * np.nan, GOOD > 0.5, GOOD + 1j], ids=range(5))
def test_numbers_of_another_unit_are_refused(finished_run, tmp_path, capsys, frames):
    np.save(tmp_path / "in.npy", frames)
    arguments = [*words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy"), "--units", "physical"]
    refused(capsys, arguments, tmp_path / "in.npy", "about 0 to 255 8-bit level")
    assert not (tmp_path / "out.npy").exists()


def refused(capsys, arguments, *culprits):
    assert main(list(map(str, arguments))) == 1
    message = capsys.readouterr().err
    assert message.startswith("unistd: error: ")
    assert message.count("\n") == 1, message
    assert len(message) < 600, message
    for culprit in culprits:
        assert str(culprit) in message


NOT_FRAMES = {
    "uint8": (npy((GOOD * 255).astype(np.uint8)), "expected floats in [0, 1], found uint8 from 0 to 254"),
    "bool": (npy(GOOD > 0.5), "found bool from False to True"),
    "complex": (npy(GOOD.astype(np.complex64)), "found complex64"),
    "0..255": (npy(GOOD * 255), "found float32 from 0"),
    "negative": (npy(GOOD - 1e-3), "found float32 from -0.000"),
    "nan": (npy(np.where(GOOD > 0.9, np.nan, GOOD)), "from nan to nan"),
    "one nan in a batch": (npy(np.stack([GOOD] * 20 + [np.full_like(GOOD, np.nan)])), "in samples 16 to 20"),
    "inf": (npy(np.where(GOOD > 0.9, np.inf, GOOD)), "to inf"),
    "overflow to inf": (npy(GOOD.astype(np.float64) * 1e300), "found float64"),
    "channels last": (npy(GOOD.transpose(0, 2, 3, 1)), "found (3, 16, 16, 1)"),
    "one frame": (npy(GOOD[:1]), "found (1, 1, 16, 16)"),
    "no batch": (npy(np.zeros((0, *SHAPE), np.float32)), "found (0, 3, 1, 16, 16)"),
    "six axes": (npy(GOOD[None, None]), "found (1, 1, 3, 1, 16, 16)"),
    "a number": (npy(np.float32(0.5)), "found ()"),
    "many axes": (declared(shape=(1,) * 60, content=bytes(4)), "found (1, 1, 1"),
    "too many axes": (declared(shape=(1,) * 3000, content=bytes(4)), "found (1, 1, 1"),
    "objects": (npy(np.array([GOOD, None], object)), "it holds Python objects"),
    "records": (npy(np.zeros(SHAPE, [("a", "f4")])), "elements of type"),
    "times": (npy(np.zeros(SHAPE, "m8[s]")), "elements of type"),
    "texts": (npy(np.zeros(SHAPE, "U4")), "elements of type"),
    "an archive": (archive(), "an archive (.npz)"),
    "an archive that unpacks to more": (bomb(), "an archive (.npz)"),
    "a pickle": (b"\x80\x04\x95\x00.", "it starts with b'\\x80\\x04\\x95\\x00.'"),
    "text": (b"0.1 0.2 0.3\n", "it starts with b'0.1 0.'"),
    "nothing": (b"", "it starts with b''"),
    "magic alone": (b"\x93NUMPY", "not a .npy file of numbers"),
    "magic and version": (b"\x93NUMPY\x01\x00", "not a .npy file of numbers"),
    "cut in the header": (npy(GOOD)[:60], "not a .npy file of numbers"),
    "cut": (npy(GOOD)[:-1], "3071 bytes after the header, expected 3072 for float32 (3, 1, 16, 16)"),
    "cut to its header": (npy(GOOD)[:128], "0 bytes after the header"),
    "longer": (npy(GOOD) + b"\0", "3073 bytes after the header"),
    "two arrays": (npy(GOOD) * 2, "6272 bytes after the header"),
    "version 9": (header(b"{}", b"\x09\x00"), "not a .npy file of numbers (format b'\\t\\x00'"),
    "a header of 64 KiB": (header(b" " * 65_535), "a header of 65535 characters"),
    "a header of 4 GiB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "a header of 4294967295 characters"),
    "a header of brackets": (header(b"(" * 9_000), "not a .npy file of numbers"),
    "a header of minus signs": (header(b"-" * 9_000 + b"1"), "not a .npy file of numbers"),
    "a header of code": (header(b"__import__('os').system('touch /tmp/never')"), "not a .npy file of numbers"),
    "no header": (header(b""), "not a .npy file of numbers"),
    "a key too few": (header(b"{'descr': '<f4', 'shape': (3,)}"), "not a .npy file of numbers"),
    "no such type": (declared("'<q9'"), "not a .npy file of numbers"),
    "a type of code": (declared("'|O8'"), "it holds Python objects"),
    "a nested type": (declared(str([("a", [("b", "<f4")])])), "elements of type"),
    "a type of 4 GB": (declared("'|V4294967295'"), "not a .npy file of numbers"),
    "shape of texts": (declared(shape=("3", "1")), "not a .npy file of numbers"),
    "negative shape": (declared(shape=(-3, -1, 16, 16)), "expected"),
    "a petabyte": (declared(shape=(1 << 40, *SHAPE)), "3072 bytes after the header, expected 3377699720527872"),
    "beyond 2^64": (declared(shape=(1 << 70, *SHAPE)), "3072 bytes after the header"),
    "other order": (declared(order="'yes'"), "not a .npy file of numbers"),
}


@pytest.mark.parametrize("case", NOT_FRAMES)
def test_what_is_not_frames_is_refused(finished_run, tmp_path, capsys, case):
    content, found = NOT_FRAMES[case]
    source = tmp_path / "in.npy"
    source.write_bytes(content)
    refused(capsys, words(finished_run, source, tmp_path / "out.npy"), source, found)
    assert os.listdir(tmp_path) == ["in.npy"]


@pytest.mark.parametrize("kind", [*NO_FILES, "nothing"])
def test_inputs_that_are_no_files_are_refused_at_once(finished_run, tmp_path, kind):
    source = tmp_path / "in.npy"
    special(kind, source)
    assert_refused(run_command(*words(finished_run, source, tmp_path / "out.npy")), str(source))
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("kind", NO_FILES)
def test_outputs_that_are_no_files_are_left_alone(finished_run, tmp_path, kind):
    np.save(tmp_path / "in.npy", GOOD)
    special(kind, tmp_path / "out.npy")
    before = sorted(os.listdir(tmp_path))
    outcome = run_command(*words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy"))
    if kind == "a link to nothing":  # written where it leads, as by anybody
        assert outcome.status == 0, outcome
        assert np.load(tmp_path / "nowhere.npy").shape == (2, 1, 16, 16)
        assert (tmp_path / "out.npy").is_symlink()
        return
    assert_refused(outcome, "/dev/zero" if kind == "a device" else "out.npy")
    assert sorted(os.listdir(tmp_path)) == before


def sparse(path, array_header, size):
    with path.open("wb") as file:
        file.write(array_header)
        file.truncate(len(array_header) + size)


HUGE = {
    "not frames": (declared(shape=(1 << 33,), content=b""), 1 << 35, "found (8589934592,)"),
    "not in [0, 1]": (declared("'|u1'", shape=(1 << 22, *SHAPE), content=b""), (1 << 22) * 768, "found uint8"),
    "in Fortran order": (declared(order=True, shape=(1 << 20, *SHAPE), content=b""), (1 << 20) * 3072, "Fortran order"),
    "not what it declares": (declared(shape=(1 << 22, *SHAPE), content=b""), 1 << 30, "1073741824 bytes after"),
}


@pytest.mark.parametrize("case", HUGE)
def test_huge_inputs_are_refused_without_being_read(finished_run, tmp_path, case):
    start, size, found = HUGE[case]
    sparse(tmp_path / "in.npy", start, size)
    outcome = run_command(*words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy"))
    assert_refused(outcome, str(tmp_path / "in.npy"), found)
    assert os.listdir(tmp_path) == ["in.npy"]


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (lambda frames: frames.astype(">f4"), 0),
        (lambda frames: frames.astype("<f8"), 0),
        (lambda frames: frames.astype(">f8"), 0),
        (lambda frames: frames.astype(np.float16), 2e-3),
        (lambda frames: np.asfortranarray(frames), 0),
        (lambda frames: np.asfortranarray(frames.astype(">f8")), 0),
        (lambda frames: frames.astype(np.longdouble), 0),
    ],
    ids=["big endian", "double", "double, big endian", "half", "Fortran order", "both", "long double"],
)
@pytest.mark.parametrize("batch", [None, 3])
def test_other_floats_and_orders_mean_the_same(finished_run, tmp_path, change, tolerance, batch):
    frames = GOOD if batch is None else np.random.default_rng(1).random((batch, *SHAPE)).astype(np.float32)
    forecasts = []
    for array in (frames, change(frames)):
        np.save(tmp_path / "in.npy", array)
        assert main(words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy")) == 0
        forecasts.append(np.load(tmp_path / "out.npy"))
    np.testing.assert_allclose(*forecasts, atol=tolerance, rtol=0)


def test_large_batches_are_forecast_in_parts(finished_run, tmp_path, monkeypatch):
    frames = np.random.default_rng(2).random((37, *SHAPE)).astype(np.float32)
    np.save(tmp_path / "in.npy", frames)
    sizes, forward = [], UniSTD.forward
    monkeypatch.setattr(UniSTD, "forward", lambda self, x, task: sizes.append(len(x)) or forward(self, x, task))
    assert main(words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy")) == 0
    assert sizes == [16, 16, 5]
    model = open_run(finished_run)[2]
    with torch.no_grad():
        expected = model(torch.from_numpy(frames), task="kth").numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "written"),
    [("out.npy", "out.npy"), ("forecast", "forecast.npy"), ("a.v2", "a.v2.npy"), ("b[1]", "b[1].npy")],
)
def test_what_is_said_is_what_is_written(finished_run, tmp_path, capsys, monkeypatch, name, written):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", GOOD)
    assert main([*words(finished_run, "in.npy", name), "--gif"]) == 0
    said = capsys.readouterr().out
    gif = written.removesuffix(".npy") + ".gif"
    assert said.strip() == f"forecast (2, 1, 16, 16): {tmp_path / written}, {tmp_path / gif}"
    assert sorted(os.listdir()) == sorted(["in.npy", written, gif])
    assert np.load(written).shape == (2, 1, 16, 16)


def test_outputs_that_cannot_be_written_are_named(finished_run, tmp_path, capsys):
    source = tmp_path / "in.npy"
    np.save(source, GOOD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.npy").symlink_to(source)
    long = "x" * 300
    for output, culprit in [
        (source, f"{source}: is the input"),
        (tmp_path / "link.npy", "is the input"),
        (tmp_path / "in", "is the input"),
        (tmp_path / "folder", f"{tmp_path}/folder': expected the name of a file"),
        (f"{tmp_path}/new/", "/new/': expected the name of a file"),
        ("", "'': expected the name of a file"),
        (tmp_path / "missing" / "out.npy", f"{tmp_path}/missing/out.npy"),
        (source / "out.npy", "in.npy/out.npy"),
        (tmp_path / long, long),
    ]:
        refused(capsys, words(finished_run, source, output), culprit)
    assert sorted(os.listdir(tmp_path)) == ["folder", "in.npy", "link.npy"]
    np.testing.assert_array_equal(np.load(source), GOOD)


def test_an_animation_that_cannot_be_written_leaves_no_forecast(finished_run, tmp_path, capsys):
    np.save(tmp_path / "in.npy", GOOD)
    (tmp_path / "out.gif").mkdir()
    arguments = [*words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy"), "--gif"]
    refused(capsys, arguments, f"{tmp_path}/out.gif: expected a file or nothing, found a folder")
    assert sorted(os.listdir(tmp_path)) == ["in.npy", "out.gif"]


def with_little_room(arguments, room):
    """`main` where no file may become larger than `room` bytes; what it says afterwards."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        status = main(arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(errors.getvalue(), end="", file=sys.stderr)
    return status


@pytest.mark.parametrize("room", [0, 100, 1000, 40_000])
def test_a_full_disk_leaves_the_last_forecast(finished_run, tmp_path, room):
    np.save(tmp_path / "in.npy", np.stack([GOOD] * 40))
    (tmp_path / "out.npy").write_bytes(b"the last one")
    arguments = words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy")
    assert_refused(attempt(with_little_room, arguments, room), "out.npy", "File too large")
    assert (tmp_path / "out.npy").read_bytes() == b"the last one"
    assert sorted(os.listdir(tmp_path)) == ["in.npy", "out.npy"]


def changed(run, folder, value):
    """A copy of a run with one weight of the decoder set to `value`."""
    from unistd.training.checkpoint import load_checkpoint, save_checkpoint

    copy = shutil.copytree(run, folder / "run")
    state = load_checkpoint(copy / "checkpoint.pt")
    key = next(key for key in state["model"] if key.startswith("decoders.kth") and key.endswith("weight"))
    state["model"][key].view(-1)[0] = value
    save_checkpoint(copy / "checkpoint.pt", state)
    return copy, key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(finished_run, tmp_path, capsys, value):
    run, key = changed(finished_run, tmp_path, value)
    np.save(tmp_path / "in.npy", GOOD)
    refused(capsys, words(run, tmp_path / "in.npy", tmp_path / "out.npy"), run / "checkpoint.pt", key)
    assert not (tmp_path / "out.npy").exists()


def test_a_forecast_that_is_not_finite_is_not_written(finished_run, tmp_path, capsys, monkeypatch):
    forward, calls = UniSTD.forward, []

    def overflowing(self, frames, task):
        calls.append(len(frames))
        result = forward(self, frames, task)
        return result if len(calls) == 1 else result.index_fill(0, torch.tensor([2]), torch.inf)

    monkeypatch.setattr(UniSTD, "forward", overflowing)
    np.save(tmp_path / "in.npy", np.stack([GOOD] * 20))
    refused(capsys, words(finished_run, tmp_path / "in.npy", tmp_path / "out.npy"), "forecast of sample 18 is NaN")
    assert os.listdir(tmp_path) == ["in.npy"]


def test_an_input_that_is_cut_meanwhile_is_named(finished_run, tmp_path, capsys, monkeypatch):
    source, forward = tmp_path / "in.npy", UniSTD.forward

    def cutting(self, frames, task):
        os.truncate(source, 30_000)
        return forward(self, frames, task)

    monkeypatch.setattr(UniSTD, "forward", cutting)
    np.save(source, np.stack([GOOD] * 40))
    refused(capsys, words(finished_run, source, tmp_path / "out.npy"), f"{source}: has changed since it was opened")
    assert os.listdir(tmp_path) == ["in.npy"]
