"""ICAR-ENSO from netCDF files of both kinds."""

import pickle
import struct
from functools import partial

import h5py
import numpy as np
import pytest
from scipy.io import netcdf_file
from support.bad_files import KINDS_OF_DAMAGE, damaged, refusal, right_or_refused
from support.forms.enso import contents, rows_of, run, write_classic, write_enso, write_hdf5
from support.forms.reading import BROKEN, read_all, refused
from support.refusal import assert_refused, attempt

from unistd.tasks import DataFileError, build_dataset, files_found, get_task
from unistd.tasks.netcdf import open_variables

SPEC = get_task("enso").spec
FOLDER = "enso_round1_train_20210201"
WRITERS = {
    "netCDF 4": write_hdf5,
    "netCDF 4, packed": partial(write_hdf5, compression="gzip", chunks=(1, 36, 24, 72)),
    "netCDF 3": write_classic,
    "netCDF 3, short offsets": partial(write_classic, version=1),
}


def physical(samples):
    return samples * np.float32(SPEC.scale) + np.float32(SPEC.offset)


def sst_of(**changes):
    values = contents((2, 1, 1, 1), (24, 72), 0) | changes
    del values["ua"]
    return values


@pytest.mark.parametrize("kind", ["netCDF 4", "netCDF 3", "netCDF 3, short offsets"])
def test_runs_are_put_together_from_overlapping_rows(tmp_path, kind):
    write_enso(tmp_path, write=WRITERS[kind])
    found = read_all(SPEC, tmp_path)
    assert {split: len(samples) for split, samples in found.items()} == {
        "train": 2 * (60 - 25) - 12, "val": 60 - 25, "test": 48 - 25
    }  # fmt: skip
    for split, (number, years) in {"val": (2, 3), "test": (3, 2)}.items():
        months = run(years, number)[:, :, 19:67]
        for start, sample in enumerate(found[split]):
            np.testing.assert_allclose(physical(sample)[:, 0], months[start : start + 26], atol=1e-5)
    second = run(2, 1)[:, :, 19:67]
    np.testing.assert_allclose(physical(found["train"][35 + 22])[:, 0], second[22:48], atol=1e-5)
    data = pickle.loads(pickle.dumps(build_dataset(SPEC, "test", root=tmp_path, length=2)))
    np.testing.assert_array_equal(data[1][1], found["test"][11][12:])
    assert files_found("enso", tmp_path) == str(tmp_path / FOLDER)
    assert data.notes == ("1 runs of models",)


def test_packed_rows_read_the_same(tmp_path):
    for name, kind in (("a", "netCDF 4"), ("b", "netCDF 4, packed")):
        (tmp_path / name / "enso").mkdir(parents=True)
        WRITERS[kind](tmp_path / name / "enso/CMIP_train.nc", sst_of())
    for split in ("train", "val", "test"):
        a, b = (build_dataset(SPEC, split, root=tmp_path / name)[3][0] for name in "ab")
        np.testing.assert_array_equal(a, b)


def test_latitudes_from_north_to_south_are_turned(tmp_path):
    values = sst_of()
    write_enso(tmp_path / "a", clips=(2, 1, 1, 1))
    turned = {"lat": (("lat",), values["lat"][1][::-1]), "sst": (values["sst"][0], values["sst"][1][:, :, ::-1])}
    (tmp_path / "b").mkdir()
    write_hdf5(tmp_path / "b/CMIP_train.nc", values | turned)
    a, b = (build_dataset(SPEC, "val", root=tmp_path / name)[0][0] for name in "ab")
    np.testing.assert_array_equal(a, b)


def test_a_run_that_is_there_twice_is_left_out_of_train(tmp_path):
    sst = np.concatenate([rows_of(run(2, number)) for number in (0, 3, 1, 2)] + [rows_of(run(2, 3)[12:])])
    values = sst_of(sst=(("year", "month", "lat", "lon"), sst))
    (tmp_path / "enso").mkdir()
    write_classic(tmp_path / "enso/CMIP_train.nc", values)
    data = build_dataset(SPEC, "train", root=tmp_path)
    assert len(data) == 2 * 23
    assert data.notes == ("3 runs of models", "23 of 69 windows left out: they share frames with another split")


def test_the_scale_goes_as_far_as_the_train_split_alone(tmp_path):
    values = sst_of()
    sst = values["sst"][1].copy()
    sst[-1, 3, 2, 40] = 40  # the test split's
    sst[-2, 3, 2, 40] = -40  # the val split's
    (tmp_path / "enso").mkdir()
    write_classic(tmp_path / "enso/CMIP_train.nc", values | {"sst": (values["sst"][0], sst)})
    assert build_dataset(SPEC, "train", root=tmp_path).spec == SPEC
    sst[2, 3, 2, 40] = 20
    write_classic(tmp_path / "enso/CMIP_train.nc", values | {"sst": (values["sst"][0], sst)})
    for split in ("train", "test"):
        spec = build_dataset(SPEC, split, root=tmp_path).spec
        assert spec.offset == SPEC.offset
        assert spec.offset + spec.scale == pytest.approx(20)


def test_the_runs_of_the_release_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr("unistd.tasks.readers.enso._PUBLISHED", ((1, 1), (2, 2)))
    values = sst_of(sst=(("year", "month", "lat", "lon"), np.zeros((5, 36, 24, 72), np.float32)))
    (tmp_path / "enso").mkdir()
    write_classic(tmp_path / "enso/CMIP_train.nc", values)
    with pytest.raises(DataFileError, match="every window of a split is in another split too"):
        build_dataset(SPEC, "train", root=tmp_path)
    assert len(build_dataset(SPEC, "test", root=tmp_path)) == 48 - 25


def with_sst(change):
    def edit(values):
        dimensions, sst = values["sst"]
        return values | {"sst": (dimensions, change(sst.copy()))}

    return edit


def put(value):
    def change(sst):
        sst[2, 3, 4, 30] = value
        return sst

    return with_sst(change)


def without(name):
    return lambda values: {key: value for key, value in values.items() if key != name}


def coordinate(name, values):
    return lambda stored: stored | {name: ((name,), np.asarray(values, np.float64))}


VALUES = {
    "NaN": (put(np.nan), "'sst' holds nan in row 2, expected anomalies in degC"),
    "Inf": (put(-np.inf), "'sst' holds -inf in row 2"),
    "a fill value": (put(9.96921e36), "'sst' holds 9.9692"),
    "kelvin": (with_sst(lambda sst: sst + 290), "expected anomalies in degC, at most 100"),
    "integers": (with_sst(lambda sst: sst.astype(np.int16)), "'sst' is"),
    "no sst": (without("sst"), "no variable 'sst'"),
    "35 months": (with_sst(lambda sst: sst[:, :35]), "(5, 35, 24, 72), expected float (rows, months, lat, lon) of"),
    "one run": (with_sst(lambda sst: sst[:2]), "1 runs of models, expected at least 3"),
    "a year": (with_sst(lambda sst: sst[:, :12]), "12 months, expected at least 26"),
    "lon in another place": (coordinate("lon", np.arange(72.0)), "no 'lon' from 95 to 330"),
    "lon in disorder": (coordinate("lon", np.arange(72.0)[::-1] * 5), "'lon' holds [355.0, 350.0"),
    "lon is NaN": (coordinate("lon", np.full(72, np.nan)), "'lon' holds [nan"),
    "finer lon": (
        lambda values: contents((2, 1, 1, 1), (24, 144), 0), "frames (26, 1, 24, 95), expected (26, 1, 24, 48)"
    ),
    "fewer lat": (lambda values: contents((2, 1, 1, 1), (20, 72), 0), "frames (26, 1, 20, 48), expected"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["netCDF 4", "netCDF 3"])
@pytest.mark.parametrize("case", VALUES)
def test_other_contents_are_refused(tmp_path, case, kind):
    edit, found = VALUES[case]
    (tmp_path / "enso").mkdir()
    values = edit(sst_of())
    WRITERS[kind](tmp_path / "enso/CMIP_train.nc", values)
    assert found in refused(tmp_path / "enso/CMIP_train.nc", SPEC, tmp_path)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("form", ["netCDF 4", "netCDF 3"])
@pytest.mark.parametrize("name", ["CMIP_train.nc", "CMIP_label.nc"])
def test_broken_files_are_refused(tmp_path, kind, form, name):
    write_enso(tmp_path, clips=(1, 1, 1), write=WRITERS[form])
    path = tmp_path / FOLDER / name
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    refused(path, SPEC, tmp_path)


@pytest.mark.parametrize("kind", ["netCDF 4", "netCDF 3"])
@pytest.mark.parametrize("name", ["lat", "lon"])
def test_cells_without_degrees_are_refused(tmp_path, kind, name):
    values = without(name)(sst_of())
    dimensions, sst = values["sst"]
    (tmp_path / "enso").mkdir()
    path = tmp_path / "enso/CMIP_train.nc"
    WRITERS[kind](path, values | {"sst": (dimensions, sst)})
    # HDF5 has a data set of that name for the dimension, in which nothing is written
    found = f"no variable {name!r}" if kind == "netCDF 3" else f"{name!r} declares"
    assert found in refused(path, SPEC, tmp_path)


def test_labels_that_do_not_belong_to_it_are_refused(tmp_path):
    write_enso(tmp_path)
    labels = tmp_path / FOLDER / "CMIP_label.nc"
    write_classic(labels, {"nino": (("year", "month"), np.zeros((9, 36), np.float32))})
    assert "'nino' is >f4 (9, 36), expected float (10, 36) as 'sst'" in refused(labels, SPEC, tmp_path)
    write_classic(labels, {"nino": (("year", "month"), np.full((10, 36), np.nan))})
    assert "'nino' holds NaN or Inf" in refused(labels, SPEC, tmp_path)
    write_classic(labels, {"other": (("year", "month"), np.zeros((10, 36), np.float32))})
    assert "no variable 'nino'" in refused(labels, SPEC, tmp_path)
    labels.unlink()
    assert len(build_dataset(SPEC, "test", root=tmp_path)) == 23


def test_near_names_are_named(tmp_path):
    write_enso(tmp_path)
    path = tmp_path / FOLDER / "CMIP_train.nc"
    path.rename(path.with_name("cmip_train.nc4"))
    assert "expected CMIP_train.nc" in refused(tmp_path / FOLDER, SPEC, tmp_path)


DECLARED = {
    "no row": ((4645, 36, 24, 72), None, "declares 1155824640 bytes, of which 0 are in the file"),
    "2^50 rows": ((1 << 50, 36, 24, 72), (1, 36, 24, 72), "that was never written"),
    "a huge row": ((8, 36, 24, 1 << 30), (1, 1, 24, 72), "rows of 3710851743744 bytes"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_what_hdf5_declares_and_does_not_hold_is_refused(tmp_path, case):
    shape, chunks, found = DECLARED[case]
    write_enso(tmp_path, clips=(1, 1, 1))
    path = tmp_path / FOLDER / "CMIP_train.nc"
    with h5py.File(path, "r+") as file:
        del file["sst"]
        file.create_dataset("sst", shape, "f4", chunks=chunks)
    (tmp_path / FOLDER / "CMIP_label.nc").unlink()
    outcome = attempt(read_all, SPEC, tmp_path)
    assert_refused(outcome, str(path), found)


def header_of(tmp_path):
    write_enso(tmp_path, clips=(1, 1, 1), write=write_classic)
    path = tmp_path / FOLDER / "CMIP_train.nc"
    return path, path.read_bytes()


@pytest.mark.parametrize("side", ["year", "lon", "month"])
@pytest.mark.parametrize("length", [0, 1 << 20, (1 << 31) - 1, (1 << 32) - 1])
def test_what_a_classic_header_declares_and_does_not_hold_is_refused(tmp_path, side, length):
    path, content = header_of(tmp_path)
    name = struct.pack(">I", len(side)) + side.encode() + bytes(-len(side) % 4)
    place = content.index(name) + len(name)
    path.write_bytes(content[:place] + struct.pack(">I", length) + content[place + 4 :])
    outcome = attempt(read_all, SPEC, tmp_path)
    assert_refused(outcome, str(path.parent))


@pytest.mark.parametrize("kind", KINDS_OF_DAMAGE)
def test_a_damaged_classic_header_is_read_or_refused(tmp_path, kind):
    path, content = header_of(tmp_path)
    end = content.index(b"sst") + 80
    for step, place in enumerate(range(0, end, 3)):
        path.write_bytes(damaged(content, kind, place, step))
        right_or_refused(lambda file: open_variables(file, "sst", "lat", "lon"), path)


def test_variables_of_an_unlimited_dimension(tmp_path):
    path = tmp_path / "a.nc"
    for names in (("sst",), ("sst", "ua")):
        with netcdf_file(path, "w") as file:
            file.createDimension("year", None)
            file.createDimension("lon", 3)
            for name in names:
                file.createVariable(name, "f4", ("year", "lon"))[:] = np.arange(12, dtype=np.float32).reshape(4, 3)
        if len(names) == 1:
            (sst,) = open_variables(path, "sst")
            np.testing.assert_array_equal(sst.rows(1, 3), np.arange(12).reshape(4, 3)[1:3])
        else:
            assert "between other variables of an unlimited" in refusal(path, open_variables, path, "sst")
