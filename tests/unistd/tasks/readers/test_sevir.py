"""SEVIR from its catalogue and its files of events."""

import json
import pickle
import shutil
import time

import h5py
import numpy as np
import pytest
from support.bad_files import KINDS_OF_DAMAGE, damaged, refusal
from support.forms.reading import BROKEN, read_all, refused
from support.forms.sevir import event, file_name, row, write_catalog, write_events, write_sevir
from support.refusal import MEMORY, attempt
from support.tiny_run import tiny_config

from unistd.cli import main
from unistd.tasks import DataFileError, build_dataset, files_found, get_task

SPEC = get_task("sevir").spec
SMALL = SPEC.replace(height=16, width=16)
H5 = f"sevir/data/{file_name('vil')}"


def physical(samples, spec):
    return samples * np.float32(spec.scale) + np.float32(spec.offset)


def test_three_windows_an_event_split_by_time(tmp_path):
    write_sevir(tmp_path, size=16)
    found = read_all(SMALL, tmp_path)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 6, "val": 3, "test": 3}
    np.testing.assert_array_equal(found["train"][4, :, 0] * 255, np.moveaxis(event(16, 1)[..., 12:37], 2, 0))
    np.testing.assert_array_equal(found["test"][2, :, 0] * 255, np.moveaxis(event(16, 3)[..., 24:], 2, 0))
    data = pickle.loads(pickle.dumps(build_dataset(SMALL, "train", root=tmp_path, length=3)))
    np.testing.assert_array_equal(data[2][1], found["train"][4][13:])
    assert data.notes == ("vil: 4 events in the catalogue",)
    assert files_found("sevir", tmp_path) == str(tmp_path / "sevir")
    assert len(build_dataset(SMALL, "val", root=tmp_path / "sevir")) == 3


@pytest.mark.parametrize(
    ("kind", "unit", "factor"), [("vis", "reflectance", 1e-4), ("ir069", "degC", 1e-2), ("ir107", "degC", 1e-2)]
)
def test_the_other_image_types_are_in_their_units(tmp_path, kind, unit, factor):
    write_sevir(tmp_path, size=16, kind=kind)
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert data.spec.unit == unit
    expected = np.moveaxis(event(16, 0, kind=kind)[..., :25], 2, 0) * factor
    np.testing.assert_allclose(physical(np.concatenate(data[0]), data.spec)[:, 0], expected, atol=1e-4)


def test_vil_comes_first_and_others_alone(tmp_path):
    for kind in ("vis", "ir069"):
        write_sevir(tmp_path, size=16, kind=kind)
    rows = [row(number, kind) for kind in ("vil", "vis", "ir069") for number in range(4)]
    write_catalog(tmp_path / "sevir", rows)
    assert "files of vis, ir069, expected vil, or one of them alone" in refused(
        tmp_path / "sevir/CATALOG.csv", SMALL, tmp_path
    )
    write_sevir(tmp_path, size=16)
    write_catalog(tmp_path / "sevir", rows)
    assert build_dataset(SMALL, "test", root=tmp_path).spec.unit == SPEC.unit


def test_the_rows_of_the_lightning_are_passed_over(tmp_path):
    write_sevir(tmp_path, size=16)
    lightning = [row(number, "lght", pct_missing="", file_index="", llcrnrlat="") for number in range(4)]
    rows = [entry for number in range(4) for entry in (lightning[number], row(number))]
    write_catalog(tmp_path / "sevir", rows)
    assert {split: len(samples) for split, samples in read_all(SMALL, tmp_path).items()} == {
        "train": 6, "val": 3, "test": 3
    }  # fmt: skip


def test_frames_of_another_size_and_length(tmp_path):
    write_sevir(tmp_path, size=32)
    assert read_all(SMALL, tmp_path)["val"].shape == (3, 25, 1, 16, 16)
    events = np.stack([event(16, number, frames=25) for number in range(4)])  # as SEVIR-LR has it
    write_events(tmp_path / H5, events, [f"S{number:06d}" for number in range(4)])
    assert len(read_all(SMALL, tmp_path)["train"]) == 2
    assert "25 frames, expected at least 26" in refused(tmp_path, SMALL.replace(frames_out=13), tmp_path)


def test_missing_pixels_and_repeated_events_are_left_out(tmp_path):
    write_sevir(tmp_path, size=16)
    again = row(0, time_utc="2019-09-01 00:00:00")
    write_catalog(tmp_path / "sevir", [row(0), row(1, pct_missing=0.2), row(2), again, row(3)])
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert len(data) == 3
    assert "2 events left out: repeated, or with missing pixels" in data.notes
    assert len(build_dataset(SMALL, "test", root=tmp_path)) == 3


@pytest.mark.parametrize("packed", ["gzip", None])
def test_the_same_frames_under_another_id_are_left_out_of_train(tmp_path, packed):
    write_sevir(tmp_path, size=16)
    with h5py.File(tmp_path / H5, "r+") as file:
        events = file["vil"][:]
        events[0] = events[3]
        del file["vil"]
        file.create_dataset("vil", data=events, chunks=(1, 16, 16, 49) if packed else None, compression=packed)
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert len(data) == 3
    assert "3 of 6 windows left out: they share frames with another split" in data.notes


def test_events_that_overlap_in_time_and_place_are_left_out_of_train(tmp_path):
    write_sevir(tmp_path, size=16)
    places = {"llcrnrlat": 30, "urcrnrlat": 33.5}
    rows = [row(0, time_utc="2018-12-31 23:00:00", **places), row(1, time_utc="2018-12-31 23:00:00")]
    write_catalog(tmp_path / "sevir", [*rows, row(2, time_utc="2019-01-01 01:00:00", **places), row(3)])
    data = build_dataset(SMALL, "train", root=tmp_path)
    assert len(data) == 3
    assert "1 events left out: of the time and place of one of another split" in data.notes
    assert len(build_dataset(SMALL, "val", root=tmp_path)) == 3


def test_borders_are_earthformers(tmp_path):
    write_sevir(tmp_path, size=16)
    times = ["2019-01-01 00:00:00", "2019-01-01 00:00:01", "2019-06-01 00:00:00", "2019-06-01 00:00:01"]
    write_catalog(tmp_path / "sevir", [row(number, time_utc=time) for number, time in enumerate(times)])
    assert {split: len(samples) for split, samples in read_all(SMALL, tmp_path).items()} == {
        "train": 3, "val": 6, "test": 3
    }  # fmt: skip


def write_large(root, layout):
    """20 GiB of 2,975 events, of which six are written."""
    events, written = 2975, (0, 1, 1000, 1001, 2973, 2974)
    times = ["2018-03-01 00:00:00", "2019-03-01 00:00:00", "2019-07-01 00:00:00"]
    rows = [row(number, time_utc=times[number * 3 // events], llcrnrlat=number % 50) for number in range(events)]
    write_catalog(root / "sevir", rows)
    path = root / H5
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if layout != "contiguous":
            properties.set_chunk((1, 384, 384, 49))
        if layout != "chunks that are written alone":
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((events, 384, 384, 49))
        array = h5py.Dataset(h5py.h5d.create(file.id, b"vil", h5py.h5t.NATIVE_UINT8, space, properties))
        for number in written:
            array[number] = event(384, number)
        file["id"] = np.array([f"S{number:06d}" for number in range(events)], "S10")
    assert path.stat().st_size > 20 << 30 or layout == "chunks that are written alone"
    return len(written) if layout == "chunks that are written alone" else events


def read_one(root):
    data = build_dataset("sevir", "train", root=root)
    np.testing.assert_array_equal(data[0][0][:, 0] * 255, np.moveaxis(event(384, 0)[..., :13], 2, 0))
    print(len(data), data.notes)


@pytest.mark.parametrize("layout", ["contiguous", "chunks", "chunks that are written alone"])
def test_twenty_gigabytes_open_in_a_second(tmp_path, layout):
    events = write_large(tmp_path, layout)
    begin = time.process_time()
    data = build_dataset("sevir", "train", root=tmp_path)
    assert time.process_time() - begin < 1
    assert len(data) == {6: 6, 2975: 3 * 992}[events]
    if events == 6:
        assert "2969 events left out: never written to their files" in data.notes
    outcome = attempt(read_one, tmp_path)
    assert outcome.status == 0, outcome.errors
    assert outcome.memory < MEMORY


def train_one(root):
    own = {"data.root": str(root), "data.cache": False, "tasks": ["sevir"], "ranks.epochs": 1, "train.epochs": 1}
    sizes = {"height": 48, "width": 48, "patch": 16, "frames_in": 3, "frames_out": 2}
    config = tiny_config(root / "run", own | {"task_options": {"sevir": sizes}})
    (root / "tiny.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    return main(["train", "--config", str(root / "tiny.yaml")])


def test_twenty_gigabytes_are_trained_on_in_little_memory(tmp_path):
    write_large(tmp_path, "chunks that are written alone")
    outcome = attempt(train_one, tmp_path)
    assert outcome.status == 0, outcome.errors
    assert outcome.memory < MEMORY, "of the trainer, the model and the data"
    assert (tmp_path / "run" / "metrics.json").is_file()


CATALOGS = {
    "empty": (lambda text: "", "columns [], expected id, file_name"),
    "a column short": (lambda text: text.replace("file_index", "index"), "expected file_index as well"),
    "a header alone": (lambda text: text.splitlines()[0], "no rows of img_type vil or vis"),
    "no vil": (lambda text: text.replace(",vil,", ",lght,"), "no rows of img_type vil or vis or ir069 or ir107"),
    "a negative row": (lambda text: text.replace(".h5,2,", ".h5,-2,"), "file_index is '-2' in line 4"),
    "a fraction of a row": (lambda text: text.replace(".h5,2,", ".h5,2.5,"), "file_index is '2.5' in line 4"),
    "no id": (lambda text: text.replace("S000002", ""), "id is '' in line 4"),
    "no time": (lambda text: text.replace("2019-02-11 06:15:00", "yesterday"), "time_utc is 'yesterday' in line 4"),
    "no such day": (lambda text: text.replace("2019-02-11", "2019-02-30"), "time_utc is '2019-02-30 06:15:00'"),
    "share that is none": (lambda text: text.replace(",0\r\n", ",none\r\n"), "pct_missing is 'none' in line 2"),
    "a negative share": (lambda text: text.replace(",0\r\n", ",-1\r\n"), "pct_missing is '-1' in line 2"),
    "NaN": (lambda text: text.replace(",0\r\n", ",nan\r\n"), "pct_missing is 'nan' in line 2"),
    "a file elsewhere": (lambda text: text.replace("vil/2018", "/etc"), "file_name is '/etc/"),
    "a file above": (lambda text: text.replace("vil/2018", "../../vil"), "file_name is '../../vil/"),
    "cut": (lambda text: text[: len(text) - 40], "line 5 has not the columns"),
    "cut after a line": (lambda text: text[: text.index("S000003")], None),
    "too many columns": (lambda text: text.replace(",0\r\n", ",0,0\r\n"), "line 2 has not the columns"),
    "an open quote": (lambda text: text.replace("S000002", '"S000002'), "not a table of comma-separated values"),
    "NUL": (lambda text: text.replace("S000002", "S\0"), "S000002"),
    "a wide field": (lambda text: text.replace("S000002", "S" * 200_000), "not a table of comma-separated values"),
    "an unknown event": (lambda text: text.replace("S000002", "S000009"), "'id' is 'S000002' in row 2"),
    "a row too far": (lambda text: text.replace(".h5,2,", ".h5,4,"), "4 events, but CATALOG.csv has S000002 in row 4"),
    "another row": (lambda text: text.replace(".h5,2,", ".h5,1,"), "'id' is 'S000001' in row 1, expected 'S000002'"),
}


@pytest.mark.parametrize("case", CATALOGS)
def test_bad_catalogues_are_refused(tmp_path, case):
    edit, found = CATALOGS[case]
    write_sevir(tmp_path, size=16)
    path = tmp_path / "sevir/CATALOG.csv"
    path.write_text(edit(path.read_bytes().decode()), newline="")
    assert (found or "no events of vil for the test split") in refused(tmp_path / "sevir", SMALL, tmp_path)


def test_a_catalogue_of_other_bytes_is_refused(tmp_path):
    write_sevir(tmp_path, size=16)
    path = tmp_path / "sevir/CATALOG.csv"
    path.write_bytes(path.read_bytes().replace(b"S000002", b"S\xff\xfe"))
    assert "not UTF-8 text" in refused(path, SMALL, tmp_path)
    with path.open("wb") as file:
        file.truncate(10 << 30)
    assert "10737418240 bytes, expected a catalogue of at most" in refused(path, SMALL, tmp_path)


def test_files_that_the_catalogue_lists_and_are_not_there(tmp_path):
    write_sevir(tmp_path, size=16)
    write_catalog(tmp_path / "sevir", [*map(row, range(4)), row(5, file_name="vil/2019/SEVIR_VIL_OTHER.h5")])
    assert "no such file" in refused(tmp_path / "sevir/data/vil/2019/SEVIR_VIL_OTHER.h5", SMALL, tmp_path)
    shutil.rmtree(tmp_path / "sevir/data")
    assert "no such file, which CATALOG.csv lists" in refused(tmp_path / H5, SMALL, tmp_path)
    (tmp_path / "sevir/CATALOG.csv").rename(tmp_path / "sevir/catalog.csv")
    assert "expected CATALOG.csv beside data/vil/" in refused(tmp_path / "sevir", SMALL, tmp_path)


def put(events=None, ids=None, kind="vil"):
    def edit(file):
        for key, content in ((kind, events), ("id", ids)):
            if content is not None:
                file.pop(key, None)
                file[key] = content

    return edit


def declare(shape, **options):
    def edit(file):
        del file["vil"]
        file.create_dataset("vil", shape, "u1", **options)

    return edit


EVENTS = {
    "int16": (put(np.zeros((4, 16, 16, 49), np.int16)), "'vil' is int16 (4, 16, 16, 49), expected uint8 (N, H, W, T)"),
    "NaN": (put(np.full((4, 16, 16, 49), np.nan, np.float32)), "'vil' is float32"),
    "three axes": (put(np.zeros((4, 16, 16), np.uint8)), "expected uint8 (N, H, W, T)"),
    "no frames": (put(np.zeros((4, 16, 16, 0), np.uint8)), "expected uint8 (N, H, W, T)"),
    "few frames": (put(np.zeros((4, 16, 16, 24), np.uint8)), "24 frames, expected at least 25"),
    "no vil": (lambda file: file.pop("vil"), "found keys ['id'], expected data sets 'vil'"),
    "no id": (lambda file: file.pop("id"), "found keys ['vil'], expected data sets 'id'"),
    "fewer ids": (put(ids=np.array(["S000000"] * 3, "S10")), "'id' is |S10 (3,), expected a text for each of the 4"),
    "ids as numbers": (put(ids=np.arange(4)), "'id' is int64 (4,), expected a text"),
    "other ids": (put(ids=np.array(["S000001"] * 4, "S10")), "'id' is 'S000001' in row 0, expected 'S000000'"),
    "20 GiB of nothing": (declare((4, 384, 384, 49)), "declares 28901376 bytes, of which 0 are in the file"),
    "no chunks": (declare((4, 16, 16, 49), chunks=(1, 16, 16, 49)), "no events of vil for the"),
    "2^40 events": (declare((1 << 40, 16, 16, 49), chunks=(1, 16, 16, 49)), "expected a text for each of the 1099511"),
    "a huge event": (declare((4, 1 << 20, 1 << 20, 49), chunks=(1, 64, 64, 49)), "rows of 53876069761024 bytes"),
}


@pytest.mark.parametrize("case", EVENTS)
def test_files_of_events_that_are_not_as_published(tmp_path, case):
    edit, found = EVENTS[case]
    write_sevir(tmp_path, size=16)
    with h5py.File(tmp_path / H5, "r+") as file:
        edit(file)
    assert found in refused(tmp_path / "sevir", SMALL, tmp_path)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused(tmp_path, kind):
    write_sevir(tmp_path, size=16)
    path = tmp_path / H5
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    refused(path, SMALL, tmp_path)


@pytest.mark.parametrize("kind", KINDS_OF_DAMAGE)
def test_a_damaged_catalogue_is_read_or_refused(tmp_path, kind):
    write_sevir(tmp_path, size=16)
    path = tmp_path / "sevir/CATALOG.csv"
    content = path.read_bytes()
    for step, place in enumerate(range(0, len(content), len(content) // 40)):
        path.write_bytes(damaged(content, kind, place, step))
        try:
            build_dataset(SMALL, "train", root=tmp_path)
        except DataFileError:
            refusal(tmp_path / "sevir", read_all, SMALL, tmp_path)
