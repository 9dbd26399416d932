"""Reader of SEVIR: a catalogue of events, and HDF5 files that hold some hundreds of them each.

`CATALOG.csv` has a row for every event and image type; `file_name` is relative to `data/` beside it, `file_index` the
row of that file's data set, which is named as the type and is (N, H, W, T): 49 frames of 5 minutes. `id` (N,) says
which event each row is.

One image type is read: `vil` where there are files of it, otherwise the only other one of which there are: `vis`
(768 x 768), `ir069` or `ir107` (192 x 192). Those are int16 of 1/10,000 of reflectance and of 1/100 degC; the numbers
here are reflectance and degC. Frames that are not of the spec's size are resized.

As in Earthformer, events of which pixels are missing are left out, and repeated ones; train is to 2019-01-01, val to
2019-06-01, test the rest; windows start every 12 frames.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from unistd.tasks.files import DataFileError, FileNames, in_words
from unistd.tasks.hdf5 import Hdf5Array, open_datasets
from unistd.tasks.readers.clips import Clip, ClipDataset, content_id, cut, every
from unistd.tasks.readers.fit import cover
from unistd.tasks.readers.index import indexed
from unistd.tasks.readers.sevir_catalog import Event, before, files_of, read_catalog, unique
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

_FILES = FileNames(
    task="sevir",
    folders=("sevir", "sevir_lr"),
    known=re.compile(r"^CATALOG\.csv$"),
    alike=re.compile(r"^catalog.*\.csv|^sevir_.*\.(h5|hdf5)$", re.IGNORECASE),
    expected="CATALOG.csv beside data/vil/YEAR/SEVIR_VIL_*.h5",
)
_STRIDE = 12  # frames between windows
_INTERVAL = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class _Kind:
    """An image type: how it is stored, in units of `factor`, and which numbers are 0 and 1 (as a spec has them)."""

    dtype: np.dtype
    factor: float
    units: dict[str, float | str]


_KINDS = {
    "vil": _Kind(np.dtype(np.uint8), 1, {}),  # as the spec
    "vis": _Kind(np.dtype(np.int16), 1e-4, {"scale": 1.0, "offset": 0.0, "unit": "reflectance"}),
    "ir069": _Kind(np.dtype(np.int16), 1e-2, {"scale": 90.0, "offset": -90.0, "unit": "degC"}),
    "ir107": _Kind(np.dtype(np.int16), 1e-2, {"scale": 150.0, "offset": -100.0, "unit": "degC"}),
}


class SevirReader:
    """Windows of the events of `<root>/sevir/CATALOG.csv` (in any case of letters) or `<root>/CATALOG.csv`."""

    def find(self, root: Path) -> Path | None:
        """The folder of the catalogue; see `FileNames.find`."""
        return _FILES.find(root)

    def open(self, spec: TaskSpec, split: str, root: Path, length: int | None, seed: int) -> ClipDataset:
        """See `Task.open`; `seed` has no effect. No frames are read."""
        top = self.find(root)
        catalog = top / "CATALOG.csv"
        kind, listed = _choose(catalog, read_catalog(catalog, _KINDS))
        events = unique([event for event in listed if event.complete])
        files = {file: _EventFile.open(catalog, file, kind, part) for file, part in files_of(events)}
        written = [event for event in events if event.id in files[event.file].ids]
        notes = [f"{kind}: {len(listed)} events in the catalogue"]
        for count, why in (
            (len(listed) - len(events), "repeated, or with missing pixels"),
            (len(events) - len(written), "never written to their files"),
        ):
            notes += [f"{count} events left out: {why}"] if count else []
        spec = spec.replace(**_KINDS[kind].units)
        held, later = {}, []
        for name in reversed(SPLITS):
            mine = [event for event in written if event.split == name]
            frames = max((files[event.file].array.shape[3] for event in mine), default=0)
            apart = before(mine, later, frames * _INTERVAL)
            if name == split and len(apart) < len(mine):
                notes.append(f"{len(mine) - len(apart)} events left out: of the time and place of one of another split")
            later += apart
            held[name] = _dataset(spec, top, [files[event.file].clip(event) for event in apart], tuple(notes))
        if not len(held[split]):
            raise _no_windows(top, spec, split, held[split], kind)
        return held[split].apart(*(held[name] for name in SPLITS[SPLITS.index(split) + 1 :])).limited(length)


def _choose(catalog: Path, events: dict[str, list[Event]]) -> tuple[str, list[Event]]:
    """The image type that is read, and its events."""
    there = [
        kind
        for kind in _KINDS
        if any(_path_of(catalog, file).exists() for file in dict.fromkeys(event.file for event in events.get(kind, ())))
    ]
    if not there:
        first = next((events[kind][0] for kind in _KINDS if events.get(kind)), None)
        if first is None:
            raise DataFileError(f"{catalog}: no rows of img_type {' or '.join(_KINDS)}, but {in_words(list(events))}")
        raise DataFileError(f"{_path_of(catalog, first.file)}: no such file, which {catalog.name} lists")
    if there[0] != "vil" and len(there) > 1:
        raise DataFileError(f"{catalog}: files of {', '.join(there)}, expected vil, or one of them alone")
    return there[0], events[there[0]]


def _path_of(catalog: Path, file: str) -> Path:
    return catalog.parent / "data" / file


@dataclass(frozen=True)
class _EventFile:
    """An HDF5 file: its data set, and what stands for the content of each of its events that is written."""

    array: Hdf5Array
    ids: dict[str, int]

    @staticmethod
    def open(catalog: Path, file: str, kind: str, events: list[Event]) -> _EventFile:
        """Raises DataFileError where the file is not as the catalogue says."""
        path = _path_of(catalog, file)
        (array,) = open_datasets(path, kind, by_rows=True)
        (named,) = open_datasets(path, "id")
        if array.dtype != _KINDS[kind].dtype or len(array.shape) != 4 or 0 in array.shape:
            raise DataFileError(
                f"{path}: {kind!r} is {array.dtype} {in_words(array.shape)}, expected {_KINDS[kind].dtype} (N, H, W, T)"
            )
        if named.shape != array.shape[:1] or named.dtype.kind != "S":
            raise DataFileError(
                f"{path}: 'id' is {named.dtype} {in_words(named.shape)}, expected a text for each of the "
                f"{array.shape[0]} events"
            )
        names = named.rows(0, named.shape[0])
        for event in events:
            if event.index >= len(names):
                raise DataFileError(
                    f"{path}: {len(names)} events, but {catalog.name} has {event.id} in row {event.index}"
                )
            name = names[event.index].decode("utf-8", "replace")
            if name != event.id:
                raise DataFileError(
                    f"{path}: 'id' is {in_words(name)} in row {event.index}, expected {event.id!r} as in {catalog.name}"
                )
        rows = np.array([event.index for event in events])
        made = indexed(
            f"sevir-1-{kind}-{content_id(rows.tobytes())}", [(path, array.stamp)], partial(_ids, array, rows)
        )
        found = {event.id: number for event, number in zip(events, made["ids"].tolist(), strict=True) if number >= 0}
        return _EventFile(array, {name: number or content_id(name.encode()) for name, number in found.items()})

    def clip(self, event: Event) -> Clip:
        """The frames of one of its events."""
        name = f"{self.array.path}: {event.id} in row {event.index}"
        id_of = partial(np.array, [self.ids[event.id]])
        return Clip(name, self.array.shape[3], partial(_frames, self.array, event.index), id_of)


def _ids(array: Hdf5Array, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"ids": array.row_ids(rows.tolist())}


def _frames(array: Hdf5Array, event: int, rows: np.ndarray) -> np.ndarray:
    """Frames (n, 1, H, W) of an event."""
    frames = np.moveaxis(array.rows(event, event + 1)[0][..., rows], 2, 0)[:, None]
    kind = _KINDS[array.key]
    return frames if kind.factor == 1 else frames * np.float32(kind.factor)


def _dataset(spec: TaskSpec, top: Path, clips: list[Clip], notes: tuple[str, ...]) -> ClipDataset:
    windows = cut(clips, spec.frames_in + spec.frames_out, every(_STRIDE))
    return ClipDataset(spec, clips, windows, str(top), cover, notes)


def _no_windows(top: Path, spec: TaskSpec, split: str, data: ClipDataset, kind: str) -> DataFileError:
    frames = spec.frames_in + spec.frames_out
    if not data.clips:
        return DataFileError(
            f"{top}: no events of {kind} for the {split} split, expected some of its time: train is to 2019-01-01, "
            "val to 2019-06-01, test the rest"
        )
    return DataFileError(f"{data.clips[0].name}: {data.clips[0].frames} frames, expected at least {frames}")
