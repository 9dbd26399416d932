"""Samples of a task as an animation and as a contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from unistd.files import write_atomically
from unistd.report.pictures import first_channel_limits, frame_picture, save_gif
from unistd.tasks.data import spread

ROWS = 6  # samples on a contact sheet
_COLUMNS = 12  # frames of each
_SMALLEST = 64  # pixels a frame is high on the sheet


def preview(data: Dataset, folder: Path) -> tuple[Path, Path]:
    """Writes `<task>.gif`, the first sample, and `<task>.png`, samples that are spread over the data set, a row each.

    Raises DataFileError for a sample that cannot be read, OSError where the folder cannot be written.
    """
    spec = data.spec
    chosen = spread(len(data), ROWS)
    samples = [np.concatenate([part.numpy() for part in data[int(index)]]) for index in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    gif, sheet = folder / f"{spec.name}.gif", folder / f"{spec.name}.png"
    write_atomically(gif, lambda path: save_gif(path, samples[0], spec))
    picture = np.concatenate([_row(frames, spec) for frames in samples])
    write_atomically(sheet, lambda path: Image.fromarray(picture).save(path, "PNG"))
    return gif, sheet


def _row(frames: np.ndarray, spec) -> np.ndarray:
    columns = np.linspace(0, len(frames) - 1, min(_COLUMNS, len(frames))).round().astype(int)
    limits = first_channel_limits(frames)
    zoom = -(-_SMALLEST // spec.height)
    pictures = [frame_picture(frames[column], spec, limits).repeat(zoom, 0).repeat(zoom, 1) for column in columns]
    return np.concatenate([np.pad(picture, ((0, 2), (0, 2), (0, 0)), constant_values=255) for picture in pictures], 1)
