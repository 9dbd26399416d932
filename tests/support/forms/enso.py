"""ICAR-ENSO as it is published, tiny: overlapping rows of three years of several runs, as netCDF of either kind."""

from collections.abc import Sequence
from pathlib import Path

import h5netcdf
import numpy as np
from scipy.io import netcdf_file

DIMENSIONS = ("year", "month", "lat", "lon")
LAT, LON = np.arange(-55.0, 61, 5), np.arange(0.0, 360, 5)


def run(years: int, seed: int, size: tuple[int, int] = (24, 72)) -> np.ndarray:
    """(12 * years + 24, *size) float32: anomalies that drift by a cell a month."""
    still = np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)
    return np.stack([np.roll(still, month, axis=1) for month in range(12 * years + 24)])


def rows_of(months: np.ndarray) -> np.ndarray:
    """A run as its overlapping rows of 36 months."""
    return np.stack([months[first : first + 36] for first in range(0, len(months) - 35, 12)])


def contents(clips: Sequence[int], size: tuple[int, int], seed: int) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Name -> dimensions and values, of runs of so many rows each."""
    sst = np.concatenate([rows_of(run(years, seed + number, size)) for number, years in enumerate(clips)])
    lat, lon = np.linspace(LAT[0], LAT[-1], size[0]), np.arange(size[1]) * 360 / size[1]
    named = {"sst": (DIMENSIONS, sst), "ua": (DIMENSIONS, sst + 1)}
    return {"lat": (("lat",), lat), "lon": (("lon",), lon), **named}


def write_hdf5(path: Path, values: dict[str, tuple[tuple[str, ...], np.ndarray]], **options: object) -> None:
    """A netCDF 4 file."""
    with h5netcdf.File(path, "w") as file:
        for name, (dimensions, content) in values.items():
            for dimension, side in zip(dimensions, content.shape, strict=True):
                if dimension not in file.dimensions:
                    file.dimensions[dimension] = side
            file.create_variable(name, dimensions, data=content, **(options if content.ndim > 1 else {}))


def write_classic(path: Path, values: dict[str, tuple[tuple[str, ...], np.ndarray]], version: int = 2) -> None:
    """A netCDF 3 file."""
    with netcdf_file(path, "w", version=version) as file:
        for name, (dimensions, content) in values.items():
            for dimension, side in zip(dimensions, content.shape, strict=True):
                if dimension not in file.dimensions:
                    file.createDimension(dimension, side)
            file.createVariable(name, content.dtype, dimensions)[:] = content
            file.variables[name].units = "of some kind"


def write_enso(
    root: Path,
    *,
    clips: Sequence[int] = (3, 2, 3, 2),
    size: tuple[int, int] = (24, 72),
    seed: int = 0,
    write=write_hdf5,
) -> None:
    """`<root>/enso_round1_train_20210201/CMIP_train.nc` and `CMIP_label.nc`; clips: rows of each run."""
    folder = root / "enso_round1_train_20210201"
    folder.mkdir(parents=True, exist_ok=True)
    values = contents(clips, size, seed)
    write(folder / "CMIP_train.nc", values)
    nino = values["sst"][1].mean(axis=(2, 3))
    write(folder / "CMIP_label.nc", {"nino": (DIMENSIONS[:2], nino)})
