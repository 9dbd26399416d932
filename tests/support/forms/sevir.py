"""SEVIR as it is published, tiny: the catalogue with its 21 columns, and HDF5 files of events."""

import csv
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

COLUMNS = (
    "id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "episode_id", "event_id", "event_type",
    "llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon", "proj", "size_x", "size_y", "height_m", "width_m", "data_min",
    "data_max", "pct_missing",
)  # fmt: skip
TIMES = ("2018-05-01 12:00:00", "2018-07-04 20:30:00", "2019-02-11 06:15:00", "2019-08-30 23:55:00")


def event(size: int, seed: int, frames: int = 49, kind: str = "vil") -> np.ndarray:
    """(size, size, frames): noise that drifts by a pixel a frame."""
    low, high, dtype = {"vil": (0, 255, np.uint8), "vis": (0, 10_000, np.int16)}.get(kind, (-9000, 1000, np.int16))
    still = np.random.default_rng(seed).integers(low, high, (size, size)).astype(dtype)
    return np.stack([np.roll(still, frame, axis=1) for frame in range(frames)], axis=2)


def row(number: int, kind: str = "vil", **changes: object) -> dict[str, object]:
    """A row of the catalogue: event `number`, which is row `number` of the one file of its type."""
    values = dict.fromkeys(COLUMNS, "")
    values |= {"id": f"S{number:06d}", "file_name": file_name(kind), "file_index": number, "img_type": kind}
    values |= {"time_utc": TIMES[number % len(TIMES)], "minute_offsets": ":".join(map(str, range(-120, 125, 5)))}
    values |= {"llcrnrlat": 30 + 4 * number, "llcrnrlon": -100, "urcrnrlat": 33.5 + 4 * number, "urcrnrlon": -96.5}
    return values | {"pct_missing": 0} | changes


def file_name(kind: str) -> str:
    return f"{kind}/2018/SEVIR_{kind.upper()}_STORMEVENTS_2018_0101_0630.h5"


def write_catalog(top: Path, rows: Iterable[dict[str, object]]) -> None:
    top.mkdir(parents=True, exist_ok=True)
    with (top / "CATALOG.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_events(path: Path, events: np.ndarray, ids: list[str], kind: str = "vil") -> None:
    """events (N, H, W, T)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(kind, data=events, chunks=(1, *events.shape[1:]), compression="gzip")
        file["id"] = np.array(ids, "S10")


def write_sevir(root: Path, *, clips: int = 4, size: int = 48, seed: int = 0, kind: str = "vil") -> None:
    """`<root>/sevir/CATALOG.csv` and one file of events below `data/`: two train, one val and one test, in turn."""
    write_catalog(root / "sevir", [row(number, kind) for number in range(clips)])
    events = np.stack([event(size, seed + number, kind=kind) for number in range(clips)])
    write_events(root / "sevir/data" / file_name(kind), events, [f"S{number:06d}" for number in range(clips)], kind)
