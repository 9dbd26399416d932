"""KTH from pictures and from the original videos, cut by their table."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.forms.kth import write_kth_avi, write_kth_frames
from support.forms.pictures import moving, save
from support.forms.reading import BROKEN, counts, read_all, refused
from support.forms.videos import write_video
from support.refusal import assert_refused, attempt
from support.special import NO_FILES, special

from unistd.tasks import DataFileError, build_dataset, get_task
from unistd.tasks.readers.kth import _read_table

SPEC = get_task("kth").spec
SMALL = SPEC.replace(height=32, width=32)
SIZE = (32, 32)
FORMS = {"frames": write_kth_frames, "avi": write_kth_avi}
FRAME = "kth/boxing/person01_boxing_d1_uncomp/image_0003.jpg"
VIDEO = "kth/running/person17_running_d1_uncomp.avi"
TABLE = "kth/00sequences.txt"
REAL = [path for path in [Path(__file__).parents[5] / "shared/data/kth/00sequences.txt"] if path.is_file()]


@pytest.mark.parametrize("form", FORMS)
def test_persons_are_split_and_sequences_cut(tmp_path, form):
    FORMS[form](tmp_path, size=SIZE)
    found = read_all(SMALL, tmp_path)
    for number, split in enumerate(("train", "val", "test")):
        boxing, running = (moving(50, *SIZE, 1, seed).transpose(0, 3, 1, 2) / 255 for seed in (number, number + 100))
        right = [boxing[start : start + 20] for start in (0, 26)]  # two sequences of 24 frames, a stride of 10 and more
        right += [running[start : start + 20] for start in (0, 3, 26, 29)]
        assert found[split].shape == (6, 20, 1, 32, 32)
        assert np.abs(found[split] - np.stack(right)).mean() < 0.06  # what the codecs leave


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_scaled_to_the_spec(tmp_path, form):
    FORMS[form](tmp_path)
    inputs, targets = pickle.loads(pickle.dumps(build_dataset(SPEC, "test", root=tmp_path)))[5]
    assert inputs.shape == targets.shape == (10, 1, 128, 128)
    assert float(inputs.std()) > 0.05


def test_deeper_pictures_are_refused(tmp_path):
    write_kth_frames(tmp_path, size=SIZE)
    path = tmp_path / FRAME
    for frame in path.parent.iterdir():
        Image.fromarray(np.full(SIZE, 40_000, np.uint16)).save(frame.with_suffix(".png"))
        frame.unlink()
    assert "pixels of uint16, expected uint8" in refused(path.parent, SMALL, tmp_path)


def test_two_pictures_of_a_frame_are_refused_and_hidden_files_passed_over(tmp_path):
    write_kth_frames(tmp_path, size=SIZE)
    right = read_all(SMALL, tmp_path)["train"]
    path = tmp_path / FRAME
    path.with_name("._image_0003.jpg").write_bytes(b"\0\5\x16\7 as macOS writes them")
    np.testing.assert_array_equal(read_all(SMALL, tmp_path)["train"], right)
    shutil.copy(path.with_name("image_0009.jpg"), path.with_name("image_3.jpg"))
    assert "the same frame as image_0003.jpg by its number" in refused(path.with_name("image_3.jpg"), SMALL, tmp_path)


def test_strides_are_those_of_the_protocol(tmp_path):
    for number, person in enumerate((1, 15, 17)):
        for action in ("walking", "jogging"):
            folder = tmp_path / f"kth/{action}/person{person:02d}_{action}_d4_uncomp"
            for frame in range(1, 81):
                save(folder / f"image_{frame:04d}.jpg", moving(1, 8, 8, 1, 99 * number + frame)[0])
    assert counts(SMALL, tmp_path) == (4 + 21, 7 + 21, 3 + 21)


@pytest.mark.parametrize("codec", ["mpeg4", "msmpeg4v2", "mjpeg", "rawvideo", "ffv1"])
def test_codecs(tmp_path, codec):
    write_kth_avi(tmp_path, size=SIZE)
    write_video(tmp_path / VIDEO, moving(60, *SIZE, 1, 7), codec)
    data = build_dataset(SMALL, "test", root=tmp_path)
    right = moving(60, *SIZE, 1, 7).transpose(0, 3, 1, 2)[29:49] / 255
    assert np.abs(np.concatenate(data[5]) - right).mean() < 0.06


def test_videos_without_folders(tmp_path):
    write_kth_avi(tmp_path, size=SIZE)
    for action in ("boxing", "running"):
        for path in (tmp_path / "kth" / action).iterdir():
            shutil.move(path, tmp_path / "kth" / path.name)
        (tmp_path / "kth" / action).rmdir()
    assert counts(SMALL, tmp_path) == (6, 6, 6)


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_under_another_persons_name_is_left_out(tmp_path, form):
    FORMS[form](tmp_path, size=SIZE)
    ending = "" if form == "frames" else ".avi"
    names = [f"kth/boxing/person{person}_boxing_d1_uncomp{ending}" for person in ("17", "03")]
    (shutil.copytree if form == "frames" else shutil.copy)(*(tmp_path / name for name in names))
    if form == "avi":
        table = tmp_path / TABLE
        table.write_text(table.read_text() + "person03_boxing_d1 frames 1-24, 27-50\n")
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert len(data) == 6
    assert data.notes[-1] == "2 of 8 windows left out: they share frames with another split"


def test_sequences_without_videos_and_beyond_their_end_are_said(tmp_path):
    write_kth_avi(tmp_path, size=SIZE)
    table = tmp_path / TABLE
    table.write_text(
        "\n".join([*table.read_text().split("\n")[:-2], "person17_running_d1\tframes 1-24, 27-90, 95-120"])
        + "\nperson13_handclapping_d3\t*missing*\r\nperson14_walking_d1 frames 1-9\n"
    )
    data = build_dataset(SMALL, "test", root=tmp_path)
    assert data.notes == (
        "1 of the 7 videos of 00sequences.txt are not there",
        "2 sequences of 00sequences.txt end behind the last frame of their video",
    )
    assert len(data) == 2 + 2 + 4  # 29 frames are left of the second, none of the third


@pytest.mark.parametrize("path", REAL)
def test_the_official_table(path):
    table = _read_table(path)
    assert (len(table), sum(map(len, table.values()))) == (599, 2391)
    assert table["person01_boxing_d1"] == [(1, 95), (96, 185), (186, 245), (246, 360)]


TABLES = {
    "no sequences": ("what it is\n", "no sequences, expected lines like"),
    "empty": ("", "no sequences"),
    "half a line": ("person01_boxing_d1 frames 1-\n", "line 1 is 'person01_boxing_d1 frames 1-'"),
    "another action": ("person01_swimming_d1 frames 1-9\n", "line 1 is"),
    "backwards": ("person01_boxing_d1 frames 9-1\n", "line 1 is"),
    "from 0": ("person01_boxing_d1 frames 0-9\n", "line 1 is"),
    "huge numbers": (f"person01_boxing_d1 frames 1-{'9' * 5000}\n", "line 1 is"),
    "twice": ("person01_boxing_d1 frames 1-9\n" * 2, "line 2 names person01_boxing_d1 again"),
    "bytes": (b"\xff\xfe\0", "not UTF-8"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_are_none(tmp_path, case):
    text, found = TABLES[case]
    write_kth_avi(tmp_path, size=SIZE, clips=1)
    (tmp_path / TABLE).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert found in refused(tmp_path / TABLE, SMALL, tmp_path)


def test_a_video_that_the_table_lacks_and_no_table(tmp_path):
    write_kth_avi(tmp_path, size=SIZE)
    table = tmp_path / TABLE
    table.write_text(table.read_text().replace("person17_running", "person18_running"))
    assert "not in 00sequences.txt" in refused(tmp_path / VIDEO, SMALL, tmp_path)
    table.unlink()
    assert "no such file" in refused(table, SMALL, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_names_that_do_not_fit(tmp_path, form):
    FORMS[form](tmp_path, size=SIZE)
    ending = "" if form == "frames" else ".avi"
    path = tmp_path / f"kth/boxing/person01_boxing_d1_uncomp{ending}"
    wrong = path.with_name(f"person01_running_d1_uncomp{ending}")
    path.rename(wrong)
    assert "someone running, expected boxing in this folder" in refused(wrong, SMALL, tmp_path)
    nobody = path.with_name(f"person26_boxing_d1_uncomp{ending}")
    wrong.rename(nobody)
    if form == "avi":
        (tmp_path / TABLE).write_text((tmp_path / TABLE).read_text().replace("person01_boxing", "person26_boxing"))
    assert "person 26, expected 01 to 25" in refused(nobody, SMALL, tmp_path)


def test_splits_without_anybody_or_enough_frames(tmp_path):
    write_kth_frames(tmp_path, size=SIZE, clips=2)
    assert "found nobody of persons 17 to 25, the test split" in refused(tmp_path / "kth", SMALL, tmp_path)
    long = SMALL.replace(frames_out=20)
    assert "found at most 24 frames in a row of persons 1 to 14" in refused(tmp_path / "kth", long, tmp_path)
    (tmp_path / FRAME).parent.rename(tmp_path / "kth/boxing/old")
    (tmp_path / FRAME).parent.mkdir()
    assert "no frames (but [])" in refused((tmp_path / FRAME).parent, SMALL, tmp_path)


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("name", [FRAME, VIDEO])
def test_damaged_files_are_named(tmp_path, name, damage):
    (write_kth_avi if name == VIDEO else write_kth_frames)(tmp_path, size=SIZE)
    path = tmp_path / name
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    refused(path, SMALL, tmp_path)


@pytest.mark.parametrize("place", range(0, 12_000, 1500))
def test_damage_within_a_video_is_named_or_harmless(tmp_path, place):
    write_kth_avi(tmp_path, size=SIZE)
    path = tmp_path / VIDEO
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes(300) + content[place + 300 :])
    outcome = attempt(read_all, SMALL, tmp_path)
    assert outcome.status == 0 or assert_refused(outcome, str(path)) is None


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [FRAME, VIDEO, TABLE])
def test_what_is_no_file_is_named(tmp_path, name, kind):
    (write_kth_frames if name == FRAME else write_kth_avi)(tmp_path, size=SIZE)
    (tmp_path / name).unlink()
    special(kind, tmp_path / name)
    assert_refused(attempt(read_all, SMALL, tmp_path), str(tmp_path / name))


def test_a_video_of_20_gib_of_nothing(tmp_path):
    write_kth_avi(tmp_path, size=SIZE)
    os.truncate(tmp_path / VIDEO, 20 << 30)
    outcome = attempt(read_all, SMALL, tmp_path)
    assert outcome.status == 0 or assert_refused(outcome, str(tmp_path / VIDEO)) is None
    (tmp_path / VIDEO).write_bytes(b"")
    os.truncate(tmp_path / VIDEO, 20 << 30)
    assert_refused(attempt(read_all, SMALL, tmp_path), str(tmp_path / VIDEO))


def test_videos_are_looked_through_once(tmp_path, monkeypatch):
    write_kth_avi(tmp_path, size=SIZE)
    read_all(SMALL, tmp_path)
    monkeypatch.setattr("unistd.tasks.video._survey", None)
    data = build_dataset(SMALL, "test", root=tmp_path)
    os.truncate(tmp_path / VIDEO, 4000)
    with pytest.raises(DataFileError, match="has changed since it was opened"):
        data[5]


def test_near_layouts(tmp_path):
    write_kth_frames(tmp_path, size=SIZE)
    shutil.move(tmp_path / "kth", tmp_path / "actions")
    assert "looks like the files of task 'kth'" in refused(tmp_path / "actions", SMALL, tmp_path)
    assert counts(SMALL, tmp_path / "actions") == (6, 6, 6)
    (tmp_path / "kth").mkdir()
    (tmp_path / TABLE).write_text("")
    assert "(but ['00sequences.txt']), expected ACTION/person" in refused(tmp_path / "kth", SMALL, tmp_path)
