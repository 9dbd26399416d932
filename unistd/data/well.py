"""Writes the samples of a task as HDF5 of The Well (PolymathicAI/the_well)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from torch.utils.data import Dataset

from unistd.files import write_atomically
from unistd.tasks import TaskSpec

_BLOCK = 16  # samples that are written at once


def export_well(
    datasets: dict[str, Dataset], folder: Path, advance: Callable[[str], None] = lambda split: None
) -> list[Path]:
    """Writes `folder`/data/SPLIT/TASK.hdf5 for each split ("train", "valid", "test" of The Well) and stats.yaml.

    A sample is a trajectory of Tin + Tout frames in physical units, float32: one scalar field a channel, `channel_0`
    and so on, (n_trajectories, T, x, y) with x down and y to the right; NaN where nothing was measured.

    Args:
        datasets: of one task, by split ("train", "val", "test").
        advance: called after each block of samples with the split.

    Raises:
        ValueError: a file that is there already.
        OSError: a file cannot be written; what was there before is whole.
    """
    written, sums = [], None
    for split, dataset in datasets.items():
        path = folder / "data" / {"val": "valid"}.get(split, split) / f"{dataset.spec.name}.hdf5"
        if path.exists():
            raise ValueError(f"{path}: is there already, expected a folder without it")
        path.parent.mkdir(parents=True, exist_ok=True)
        found: list[np.ndarray] = []

        def write(temporary: Path, split: str = split, dataset: Dataset = dataset, found: list = found) -> None:
            found.append(_write(temporary, dataset, lambda: advance(split)))

        write_atomically(path, write)
        sums = found[0] if split == "train" else sums
        written.append(path)
    if sums is not None:
        stats = folder / "stats.yaml"
        write_atomically(stats, lambda path: path.write_text(_stats(sums), "utf-8"))
        written.append(stats)
    return written


def _write(path: Path, dataset: Dataset, advance: Callable[[], None]) -> np.ndarray:
    """Writes the samples; sums (C, 6) of the values and the steps: number, sum, sum of squares, of each."""
    spec: TaskSpec = dataset.spec
    count, frames = len(dataset), spec.frames_in + spec.frames_out
    sums = np.zeros((spec.channels, 6))
    with h5py.File(path, "w") as file:
        file.attrs.update(
            dataset_name=spec.name,
            grid_type="cartesian",
            n_spatial_dims=2,
            n_trajectories=count,
            simulation_parameters=[],
        )
        fields = _layout(file, spec, count, frames)
        for start in range(0, count, _BLOCK):
            block = np.stack([_physical(dataset, index) for index in range(start, min(start + _BLOCK, count))])
            for channel, field in enumerate(fields):
                field[start : start + len(block)] = block[:, :, channel]
                sums[channel] += _sums(block[:, :, channel].astype(np.float64))
            advance()
    return sums


def _layout(file: h5py.File, spec: TaskSpec, count: int, frames: int) -> list[h5py.Dataset]:
    """The groups of a file of The Well; its fields, empty as yet."""
    names = [f"channel_{channel}" for channel in range(spec.channels)]
    scalars = file.create_group("t0_fields")
    scalars.attrs["field_names"] = names
    for group in ("t1_fields", "t2_fields", "scalars"):
        file.create_group(group).attrs["field_names"] = np.array([], "S1")
    fields = []
    for name in names:
        field = scalars.create_dataset(name, (count, frames, spec.height, spec.width), np.float32)
        field.attrs.update(dim_varying=[True, True], sample_varying=True, time_varying=True, unit=spec.unit)
        fields.append(field)
    dimensions = file.create_group("dimensions")
    dimensions.attrs["spatial_dims"] = ["x", "y"]
    for name, size in (("time", frames), ("x", spec.height), ("y", spec.width)):
        dimensions[name] = np.arange(size, dtype=np.float32)
        dimensions[name].attrs.update(sample_varying=False)
    for name, side in (("x", spec.height), ("y", spec.width)):
        mask = np.zeros(side, bool)
        mask[[0, -1]] = True
        border = file.create_group(f"boundary_conditions/{name}_open")
        border.attrs.update(associated_dims=[name], associated_fields=np.array([], "S1"), bc_type="OPEN",
                            sample_varying=False, time_varying=False)  # fmt: skip
        border["mask"] = mask
    return fields


def _physical(dataset: Dataset, index: int) -> np.ndarray:
    spec = dataset.spec
    frames = np.concatenate([part.numpy() for part in dataset[index]])
    return (frames.astype(np.float64) * spec.scale + spec.offset).astype(np.float32)


def _sums(values: np.ndarray) -> np.ndarray:
    """Of values (n, T, h, w): number, sum and sum of squares, of them and of the steps in time; NaN left out."""
    parts = []
    for numbers in (values, np.diff(values, axis=1)):
        there = numbers[~np.isnan(numbers)]
        parts += [there.size, there.sum(), np.square(there).sum()]
    return np.array(parts)


def _stats(sums: np.ndarray) -> str:
    """stats.yaml of The Well: mean, std and rms of each field and of its steps in time."""
    lines = []
    kinds = [("mean", 0, "mean"), ("std", 0, "std"), ("rms", 0, "rms")]
    kinds += [("mean_delta", 3, "mean"), ("std_delta", 3, "std"), ("rms_delta", 3, "rms")]
    for name, first, kind in kinds:
        lines.append(f"{name}:")
        for channel, row in enumerate(sums):
            number, total, squares = row[first : first + 3]
            mean, square = total / max(number, 1), squares / max(number, 1)
            value = {"mean": mean, "std": max(square - mean**2, 0.0) ** 0.5, "rms": square**0.5}[kind]
            lines.append(f"  channel_{channel}: {float(value)!r}")
    return "\n".join(lines) + "\n"
