"""What lies where a task's files belong and is none of them: one line with its name at once, never made-up data."""

from functools import partial

import pytest
from support.bad_files import refusal
from support.forms.deepst import FLOW, H5, read, write_h5
from support.forms.moving_mnist import write_mnist_gz, write_mnist_raw
from support.refusal import assert_refused, attempt, run_command
from support.special import NO_FILES, special

from unistd.tasks import DataFileError, build_dataset, files_found, get_task

DIGITS = get_task("moving_mnist").spec
TRAIN, SEQUENCES = "train-images-idx3-ubyte.gz", "mnist_test_seq.npy"
KINDS = [*NO_FILES, "a file"]
PLACES = {
    "root": ("root", FLOW, "train"),
    "task's folder": ("root/taxibj", FLOW, "train"),
    "digits' folder": ("root/MNIST", DIGITS, "train"),
    "counts": (f"root/taxibj/{H5}", FLOW, "val"),
    "digits": (f"root/moving_mnist/{TRAIN}", DIGITS, "train"),
    "sequences": (f"root/moving_mnist/{SEQUENCES}", DIGITS, "test"),
}


@pytest.mark.parametrize(
    ("place", "kind"), [(place, kind) for place in PLACES for kind in KINDS if (place, kind) != ("root", "a folder")]
)
def test_what_is_no_file_is_named_at_once(tmp_path, place, kind):
    name, spec, split = PLACES[place]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    special(kind, path)
    found = "a link to nothing" if kind == "a link to itself" else kind
    wanted = "a folder" if place in ("root", "task's folder", "digits' folder") else "a file"
    expected = f"found {found}, expected {wanted}" if found != wanted else ""
    outcome = attempt(read, tmp_path / "root", spec, split)
    assert_refused(outcome, str(path), expected)
    assert outcome.output == ""


@pytest.mark.parametrize("kind", [*KINDS[:3], *KINDS[4:], "nothing"])
def test_a_root_that_is_no_folder_is_an_error_of_the_table(tmp_path, kind):
    special(kind, tmp_path / "root")
    assert_refused(run_command("tasks", "--root", tmp_path / "root"), str(tmp_path / "root"))


def test_an_empty_root_is_not_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_h5(tmp_path / H5)
    refusal("data root ''", read, "")
    assert_refused(run_command("tasks", "--root", ""), "data root ''")


@pytest.mark.parametrize("function", ["open", "listdir"])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, function):
    path = write_h5(tmp_path / H5)

    def forbidden(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(f"unistd.files.os.{function}", forbidden)
    assert "cannot be read (Permission denied)" in refusal(path if function == "open" else tmp_path, read, tmp_path)


MEANT = {
    "upper case": (FLOW, "taxibj/BJ15_M4x4_T30_INOUT.H5"),
    "without its interval": (FLOW, "taxibj/BJ15.h5"),
    "without its grid": (FLOW, "BJ15_InOut.h5"),
    "an archive of another name": (FLOW, "taxibj/taxibj.npz"),
    "an array of another name": (FLOW, "TaxiBJ/training.npy"),
    "a level deeper": (FLOW, f"taxibj/raw/{H5}"),
    "in another folder": (FLOW, f"downloads/{H5}"),
    "half downloaded": (FLOW, f"taxibj/{H5}.part"),
    "a folder without files": (FLOW, "taxibj/.keep"),
    "upper case folder": (FLOW, "TAXIBJ/readme.txt"),
    "renamed since": (FLOW, "taxibj/elsewhere.h5"),
    "torchvision's tensors": (DIGITS, "MNIST/processed/training.pt"),
    "letters": (DIGITS, "moving_mnist/emnist-letters-train-images-idx3-ubyte.gz"),
    "digits with a dot": (DIGITS, "mnist/train-images.idx3-ubyte.gz"),
    "digits with a dot in torchvision's folder": (DIGITS, "MNIST/raw/train-images.idx3-ubyte"),
    "digits in the root, half downloaded": (DIGITS, f"{TRAIN}.part"),
    "digits a level deeper": (DIGITS, f"data/{TRAIN}"),
    "an archive of other sequences": (DIGITS, "moving_mnist/mm_dis01_seq0.npz"),
    "sequences in upper case": (DIGITS, "MNIST_TEST_SEQ.NPY"),
    "other sequences": (DIGITS, "mnist_test_seq_1.npy"),
    "an archive of sequences": (DIGITS, "moving-mnist-test.npz"),
}


@pytest.mark.parametrize("case", MEANT)
def test_what_is_meant_as_a_tasks_files_is_never_passed_over(tmp_path, case):
    spec, name = MEANT[case]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"something")
    message = refusal(tmp_path, read, tmp_path, spec)
    assert "expected" in message or "are read" in message
    with pytest.raises(DataFileError):
        files_found(spec.name, tmp_path)


@pytest.mark.parametrize("place", ["mnist", "moving_mnist", "."])
def test_digits_in_one_folder_and_what_is_meant_as_such_in_another(tmp_path, place):
    write_mnist_raw(tmp_path / "made")
    (tmp_path / "made/MNIST/raw").rename(tmp_path / "mnist") if place != "mnist" else write_mnist_gz(tmp_path)
    stray = tmp_path / place / "train-images.idx3-ubyte"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"")
    assert "would be left out" in refusal(stray, read, tmp_path, DIGITS)


def test_files_beside_those_that_are_read_are_not_left_out_in_silence(tmp_path):
    write_h5(tmp_path / H5)
    (tmp_path / "BJ_Meteorology.h5").write_bytes(b"of the same publication, and not of flows")
    assert len(read(tmp_path)) > 0
    (tmp_path / "BJ16_M4X4_T30_InOut.h5").write_bytes(b"")
    assert "would be left out" in refusal(tmp_path / "BJ16_M4X4_T30_InOut.h5", read, tmp_path)


@pytest.mark.parametrize("spec", [FLOW, DIGITS, get_task("kth").spec], ids=lambda spec: spec.name)
def test_nothing_is_made_up_beside_a_root(tmp_path, spec):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "notes.txt").write_text("nothing of any task")
    for split in ("train", "val", "test"):
        assert spec.name in refusal(tmp_path, partial(build_dataset, spec, split, root=tmp_path, length=1))
    assert build_dataset(spec, "train", length=1).source == "generated"
