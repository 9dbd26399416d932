"""HDF5 files that are damaged, or not as DeepST publishes them."""

import os
import signal

import h5py
import numpy as np
import pytest
from support.bad_files import KINDS_OF_DAMAGE, damaged, refusal, right_or_refused
from support.forms.deepst import COUNTS, DATES, FLOW, H5, ROWS, read, write_h5
from support.refusal import assert_refused, attempt

from unistd.tasks import hdf5
from unistd.tasks.deepst import read_flow_record
from unistd.tasks.hdf5 import open_datasets


def put(key, value, **options):
    """An edit that has `value` in the place of a data set."""

    def edit(file):
        del file[key]
        file.create_dataset(key, data=value, **options)

    return edit


def declare(key, shape, dtype="f8", **options):
    """An edit that has a data set of `shape` in that place, in which nothing is written."""

    def edit(file):
        del file[key]
        file.create_dataset(key, shape, dtype, **options)

    return edit


def link(key, target):
    def edit(file):
        file.move(key, "hidden")
        file[key] = target

    return edit


def virtual(file):
    del file["data"]
    layout = h5py.VirtualLayout((ROWS, 2, 4, 4), "f8")
    layout[:] = h5py.VirtualSource(file.filename, "elsewhere", (ROWS, 2, 4, 4))
    file.create_virtual_dataset("data", layout)


def unknown_filter(file):
    del file["data"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((20, 2, 4, 4))
    properties.set_filter(32_001, h5py.h5z.FLAG_OPTIONAL)
    space, kind = h5py.h5s.create_simple(COUNTS.shape), h5py.h5t.NATIVE_DOUBLE
    dataset = h5py.h5d.create(file.id, b"data", kind, space, properties)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, COUNTS)


def named_type(file):
    file["kind"] = np.dtype("f8")
    put("data", COUNTS, dtype=file["kind"])(file)


def unfinished(file):
    put("data", COUNTS, chunks=(20, 2, 4, 4), maxshape=(None, 2, 4, 4))(file)
    file["data"].resize(ROWS + 40, 0)
    put("date", np.concatenate([DATES, DATES[:40]]))(file)


def with_count(value, dtype=np.float64):
    counts = COUNTS.astype(dtype)
    counts[41, 1, 2, 3] = value
    return put("data", counts)


REFERENCES = np.array([None] * ROWS, h5py.ref_dtype)
H5_FILES = {
    # what is declared
    "6 GiB unallocated": (declare("data", (200_000, 2, 32, 64), chunks=(1, 2, 32, 64)), "declares 6553600000 bytes"),
    "6 GiB of the right grid": (declare("data", (1 << 25, 2, 4, 4)), "'data' declares 8589934592 bytes, of which 0"),
    "6 GiB in chunks": (declare("data", (1 << 25, 2, 4, 4), chunks=True), "chunks, of which 0 are in the file"),
    "6 GiB deflated": (declare("data", (1 << 25, 2, 4, 4), compression="gzip"), "chunks, of which 0 are in the file"),
    "6 GiB of a fill value": (declare("data", (1 << 25, 2, 4, 4), fillvalue=7.0), "of which 0 are in the file"),
    "2^62 rows": (declare("data", (1 << 55, 2, 4, 4), chunks=(1024, 2, 4, 4)), "of which 0 are in the file"),
    "dates unallocated": (declare("date", (ROWS,), "S10"), "'date' declares 600 bytes, of which 0"),
    "dates of 2^40 rows": (declare("date", (1 << 40,), "S10", chunks=(1000,)), "'date' declares"),
    "rows that were never written": (unfinished, "in 5 chunks, of which 3 are in the file"),
    "chunks of 512 MiB": (
        declare("data", (ROWS, 2, 4, 4), chunks=(1 << 21, 2, 4, 4), maxshape=(None, 2, 4, 4)),
        "chunks of 536870912 bytes",
    ),
    "more rows than dates": (put("date", DATES[:-1]), "'date' has shape (59,), expected one for each of the 60 rows"),
    "more dates than rows": (put("data", COUNTS[:-1]), "expected one for each of the 59 rows"),
    "dates in two axes": (put("date", DATES.reshape(-1, 1)), "'date' has shape (60, 1)"),
    "another grid": (put("data", np.zeros((ROWS, 2, 4, 5))), "(60, 2, 4, 5), expected (n, 2, 4, 4) as the task's spec"),
    "three channels": (put("data", np.zeros((ROWS, 3, 4, 4))), "expected numbers (n, 2, H, W)"),
    "channels last": (put("data", np.zeros((ROWS, 4, 4, 2))), "expected numbers (n, 2, H, W)"),
    "no width": (put("data", np.zeros((ROWS, 2, 4, 0))), "expected numbers (n, 2, H, W)"),
    "a number": (put("data", 3.0), "'data' has no rows (shape ())"),
    "null": (put("data", h5py.Empty("f8")), "'data' has no rows (shape None)"),
    "a date": (put("date", DATES[0]), "'date' has no rows"),
    # where it is
    "a soft link": (link("data", h5py.SoftLink("/hidden")), "'data' is a soft link"),
    "a dangling soft link": (link("date", h5py.SoftLink("/nowhere")), "'date' is a soft link"),
    "a looping soft link": (link("data", h5py.SoftLink("/data")), "'data' is a soft link"),
    "an external link": (link("data", h5py.ExternalLink("/etc/passwd", "/x")), "'data' is an external link"),
    "an external link of dates": (link("date", h5py.ExternalLink("b.h5", "/date")), "'date' is an external link"),
    "external storage": (
        lambda file: (file.pop("data"), file.create_dataset("data", COUNTS.shape, "f8", external="/etc/passwd")),
        "'data' has its data in external storage (b'/etc/passwd')",
    ),
    "a virtual data set": (virtual, "'data' is a virtual data set"),
    "a group": (lambda file: (file.pop("data"), file.create_group("data")), "expected data sets 'data' and 'date'"),
    "no data": (lambda file: file.pop("data"), "found keys ['date']"),
    "nothing": (lambda file: file.clear(), "found keys []"),
    "a hundred others": (
        lambda file: (file.clear(), [file.create_group(f"{n:02d}\n" + "x" * 300) for n in range(100)]),
        "found keys ['00\\nxxx",
    ),
    "a named type": (named_type, "'data' is of a named type"),
    "an unknown filter": (unknown_filter, "'data' is packed with filter 32001"),
    # what it is of
    "references": (put("date", REFERENCES, dtype=h5py.ref_dtype), "'date' is of type object"),
    "records": (put("data", np.zeros((ROWS, 2, 4, 4), [("a", "f4"), ("b", "f4")])), "'data' is of type [('a'"),
    "complex": (put("data", COUNTS.astype(complex)), "'data' is of type complex128"),
    "booleans": (put("data", COUNTS > 50), "'data' is of type bool"),
    "texts for counts": (put("data", COUNTS.astype("S4")), "'data' is |S4"),
    "lists": (
        declare("data", (ROWS, 2, 4, 4), h5py.vlen_dtype(np.float64)),
        "'data' is of type object",
    ),
    "opaque": (put("date", DATES.view("V10")), "'date' is of type |V10"),
    "dates as floats": (put("date", np.arange(ROWS, dtype=float)), "'date' is of type float64"),
    "dates of 1 kB": (put("date", np.array([b"2015010101" + b"x" * 990] * ROWS)), "'date' is of type |S1000"),
    "long texts": (put("date", ["2015010101" * 100] * ROWS), "'date' holds a text of 1000 bytes"),
    # what it holds
    "nan": (with_count(np.nan), "'data' holds nan in row 41, expected counts >= 0"),
    "inf": (with_count(np.inf), "'data' holds inf in row 41"),
    "inf in half precision": (with_count(np.inf, np.float16), "'data' holds inf in row 41"),
    "negative": (with_count(-1, np.int64), "'data' holds -1 in row 41"),
    "beyond float32": (with_count(1e300), "'data' holds 1e+300 in row 41"),
    "beyond whole float32": (with_count((1 << 24) + 1, np.int32), "'data' holds 16777217 in row 41"),
    "a wrapped count": (with_count((1 << 64) - 5, np.uint64), "'data' holds 18446744073709551611 in row 41"),
    "bytes of something else": (with_count(5e-310), "'data' holds 5e-310 in row 41"),
    "a day that is none": (put("date", np.where(np.arange(ROWS) == 9, b"2015023001", DATES)), "in row 9, expected"),
    "a slot that is none": (put("date", np.where(np.arange(ROWS) == 9, b"2015010149", DATES)), "in row 9, expected"),
    "digits of another script": (put("date", ["٢٠١٥٠١٠١٠١"] * ROWS), "in row 0, expected"),
    "an empty date": (put("date", np.where(np.arange(ROWS) == 9, b"", DATES)), "'' in row 9, expected"),
    "dates as negative numbers": (put("date", -np.arange(ROWS)), "'0' in row 0, expected"),
    "one date for all": (put("date", np.repeat(DATES[:1], ROWS)), "no 8 rows in a row without a break in the dates"),
    "dates backwards": (put("date", DATES[::-1]), "no 8 rows in a row without a break in the dates"),
}


@pytest.mark.parametrize("case", H5_FILES)
def test_hdf5_files_that_are_not_deepst(tmp_path, case):
    edit, found = H5_FILES[case]
    path = write_h5(tmp_path / H5, edit)
    culprit = tmp_path if "no 8 rows" in found else path
    assert found in refusal(culprit, read, tmp_path)


@pytest.mark.parametrize(
    ("edit", "layout"),
    [
        (lambda file: None, {"chunks": (16, 1, 4, 3), "compression": "gzip", "shuffle": True, "fletcher32": True}),
        (lambda file: None, {"chunks": (7, 2, 4, 4), "compression": "lzf"}),
        (lambda file: None, {"maxshape": (None, 2, 4, 4)}),
        (put("data", COUNTS.astype(">f8")), {}),
        (put("data", COUNTS.astype("f2")), {}),
        (put("data", COUNTS.astype(">i2")), {}),
        (put("data", COUNTS.astype("u8")), {}),
        (put("date", [date.decode() for date in DATES]), {}),
        (put("date", [date.decode() for date in DATES], chunks=(11,)), {}),
        (put("date", DATES.astype(np.int64)), {}),
        (put("date", DATES, chunks=(7,), compression="gzip"), {}),
        (lambda file: file.__setitem__("other", h5py.ExternalLink("/etc/passwd", "x")), {}),
    ],
    ids=[
        "gzip", "lzf", "growing", "big endian", "half", "short", "unsigned", "texts", "texts in chunks", "numbers",
        "dates in chunks", "links beside them",
    ],
)  # fmt: skip
def test_what_hdf5_can_hold_otherwise_is_read_the_same(tmp_path, edit, layout):
    record = read_flow_record(write_h5(tmp_path / H5, edit, **layout))
    np.testing.assert_array_equal(record.counts, COUNTS.astype(np.float32))
    np.testing.assert_array_equal(np.diff(record.slots), 1)


def test_small_hdf5_files_do_not_take_gigabytes(tmp_path):
    rows = 1500 * 48
    stamps = [f"{year:04d}{month:02d}{day:02d}{slot:02d}" for year in range(1, 10) for month in range(1, 13)
              for day in range(1, 29) for slot in range(1, 49)][:rows]  # fmt: skip
    with h5py.File(tmp_path / "BJ15_M128x64_T30_InOut.h5", "w") as file:
        file.create_dataset("data", (rows, 2, 128, 64), "f8", chunks=(100, 2, 128, 64), compression="gzip")
        for start in range(0, rows, 100 * 80):  # the rest is never written
            file["data"][start : start + 100] = 0.0
        file["date"] = np.array(stamps, "S10")
    spec = FLOW.replace(height=128, width=64)
    outcome = attempt(read, tmp_path, spec)
    assert_refused(outcome, "BJ15_M128x64_T30_InOut.h5", "chunks, of which 9 are in the file")


def test_hdf5_files_that_unpack_to_far_more_are_refused(tmp_path):
    rows = 20_000
    with h5py.File(tmp_path / H5, "w") as file:
        zeros = np.zeros((rows, 2, 4, 4, 16))
        file.create_dataset("data", data=zeros.reshape(rows * 16, 2, 4, 4), chunks=(rows, 2, 4, 4), compression="gzip")
        file["date"] = np.array([b"2015010101"] * (rows * 16))
    assert os.path.getsize(tmp_path / H5) < 4 << 20
    assert "'data' declares 81920000 bytes in" in refusal(tmp_path / H5, read, tmp_path)


LAYOUTS = {
    "contiguous": {},
    "gzip": {"chunks": (16, 2, 4, 4), "compression": "gzip", "shuffle": True},
    "checksums": {"chunks": (16, 2, 4, 4), "compression": "gzip", "fletcher32": True},
    "chunks": {"chunks": (16, 2, 4, 2)},
}


def values_of(content):
    """The places of the bytes that are values themselves: which they are, no format of these can tell."""
    places = set()
    for array in (COUNTS, DATES):
        start = content.find(array.tobytes()[:32])
        places |= set(range(start, start + array.nbytes)) if start >= 0 else set()
    return places


@pytest.mark.parametrize("kind", KINDS_OF_DAMAGE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_hdf5_is_read_right_or_refused(tmp_path, layout, kind):
    path = write_h5(tmp_path / H5, **LAYOUTS[layout])
    content, right = path.read_bytes(), read_flow_record(path)
    values = values_of(content)
    if layout == "chunks":  # of whole cells: their values are anywhere
        values |= set(range(2048, len(content)))
    for step, place in enumerate(range(0, len(content), len(content) // 71)):
        path.write_bytes(damaged(content, kind, place, step))
        record = right_or_refused(read_flow_record, path)
        if record is not None and not values.intersection(range(place, place + 8)) and kind != "shift":
            np.testing.assert_array_equal(record.counts, right.counts, str(place))
            np.testing.assert_array_equal(record.slots, right.slots, str(place))


def test_texts_that_lead_in_circles_end_soon(tmp_path):
    """Texts of variable length lie in heaps, in whose damaged lists HDF5 walks without end."""
    path = write_h5(tmp_path / H5, put("date", [date.decode() for date in DATES]))
    content = path.read_bytes()
    heap = content.index(b"GCOL")
    for place in range(heap, heap + 64, 8):
        path.write_bytes(damaged(content, "zero", place, 0))
        outcome = attempt(read_flow_record, path)
        assert outcome.status == 0 or assert_refused(outcome, str(path)) is None


PROGRAMS = {
    "a crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV on it"),
    "an abort": ("import os; input(); os.abort()", "ended with SIGABRT on it"),
    "no end": (
        "import signal; input(); signal.setitimer(signal.ITIMER_PROF, 0.1)\nwhile True: pass",
        "processor time without end",
    ),
    "an end": ("raise SystemExit(3)", "ended with exit status 3"),
    "half an answer": ("input(); print('{', end='')", "ended with exit status 0"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_the_librarys_crash_is_one_line(tmp_path, monkeypatch, case):
    text, found = PROGRAMS[case]
    program = tmp_path / "program.py"
    program.write_text(text)
    path = write_h5(tmp_path / H5)
    hdf5._process.end()
    monkeypatch.setattr(hdf5._process, "program", program)
    assert found in refusal(path, read_flow_record, path)
    monkeypatch.undo()
    assert len(read_flow_record(path).slots) == ROWS


def test_a_crash_that_an_earlier_file_caused_is_tried_again(tmp_path):
    path = write_h5(tmp_path / H5)
    data, _ = open_datasets(path, "data", "date")
    hdf5._process._process.kill()
    np.testing.assert_array_equal(data.rows(3, 9), COUNTS[3:9])


def test_no_code_is_loaded_for_a_filter(tmp_path, monkeypatch):
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    (tmp_path / "libfilter.so").write_bytes(b"not a library")
    hdf5._process.end()
    assert "filter 32001" in refusal(tmp_path / H5, read_flow_record, write_h5(tmp_path / H5, unknown_filter))


def test_hdf5_that_changes_meanwhile_is_named(tmp_path):
    path = write_h5(tmp_path / H5)
    for change in (lambda: os.truncate(path, 3000), lambda: write_h5(path, with_count(9)), path.unlink):
        data, _ = open_datasets(write_h5(path), "data", "date")
        change()
        refusal(path, data.rows, 0, 5)


def test_ctrl_c_does_not_reach_the_process_that_reads(tmp_path):
    path = write_h5(tmp_path / H5)
    data, _ = open_datasets(path, "data", "date")
    process = hdf5._process._process
    process.send_signal(signal.SIGINT)
    np.testing.assert_array_equal(data.rows(0, 5), COUNTS[:5])
    assert hdf5._process._process is process
