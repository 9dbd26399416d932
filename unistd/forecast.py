"""From a file of frames to a file of their forecast, a few samples at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unistd.files import require, write_atomically
from unistd.model import UniSTD
from unistd.stream import StreamedArray
from unistd.tasks import TaskSpec
from unistd.tasks.npy import NpyArray, open_npy

SAMPLES = 16  # forecast at once
_DIGITS = re.compile(r"(\d+)", re.ASCII)
_FAR = 1.5  # from the middle of [0, 1]: what lies beyond is in another unit


def open_frames(path: str, shape: tuple[int, ...]) -> NpyArray:
    """A .npy file of frames of `shape` (Tin, C, H, W), or of a batch of them; what they hold is read later.

    Raises:
        ValueError: not such a file, of another shape, or of no sample.
    """
    frames = open_npy(Path(path))
    check_shape(frames, shape)
    return frames


def check_shape(frames: NpyArray | StreamedArray, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless they are frames of `shape` (Tin, C, H, W), or a batch of one sample or more."""
    if frames.shape[-4:] != shape or len(frames.shape) > 5 or frames.shape[0] == 0:
        expected = ", ".join(map(str, shape))
        found = str(frames.shape)[:100]
        raise ValueError(f"{frames.path}: expected shape ({expected}) or (B, {expected}), found {found}")


def files_of(folder: str) -> list[Path]:
    """The .npy files in a folder, by name, numbers in names by their value; what is hidden does not count.

    Raises ValueError where there are none, or others among them.
    """
    names = sorted(
        (name for name in os.listdir(folder) if not name.startswith(".")),
        key=lambda name: [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in _DIGITS.split(name)],
    )
    if other := next((name for name in names if not name.endswith(".npy")), None):
        raise ValueError(f"{folder}: expected .npy files alone, found {other!r}")
    if not names:
        raise ValueError(f"{folder}: found no .npy file in it, expected frames")
    return [Path(folder) / name for name in names]


def new_files(folder: str, sources: Sequence[Path], gif: bool = False) -> list[Path]:
    """A file for each source's forecast, named as it, in a folder that is made where there is none.

    Args:
        gif: there will be an animation beside each.

    Raises ValueError where one of them is there already.
    """
    files = [Path(os.path.realpath(folder)) / source.name for source in sources]
    made = [*files, *(file.with_suffix(".gif") for file in files if gif)]
    if there := next((file for file in made if os.path.lexists(file)), None):
        raise ValueError(f"{there}: is there already, expected a folder without files of these names")
    require(folder, "a folder", "nothing")
    Path(folder).mkdir(exist_ok=True)
    return files


def npy_path(output: str) -> Path:
    """The file that a forecast is written to: `output`, with .npy appended where it does not end so, as numpy does.

    Raises:
        ValueError: no name of a file, or that of a folder.
    """
    if not output or output.endswith(os.sep) or os.path.isdir(output):
        raise ValueError(f"{output!r}: expected the name of a file for the forecast, found a folder's")
    return Path(os.path.realpath(output if output.endswith(".npy") else f"{output}.npy"))


def write_forecast(
    model: UniSTD,
    task: str,
    frames: NpyArray,
    output: Path,
    gif: Path | None = None,
    physical: bool = False,
    count_out: int | None = None,
) -> tuple[int, ...]:
    """Writes the forecast of all samples to `output`, and the first one's animation to `gif`; returns its shape.

    Sixteen samples are in memory at once. An error leaves what was there before.

    Args:
        physical: input and forecast are in the unit of the task's spec, not in its [0, 1].
        count_out: frames to forecast; None: those that the model was trained for. For more, it goes on from its own
            forecast (`roll_out`).

    Raises:
        ValueError: frames that are not floats in [0, 1] (physical: not numbers of about the range that the spec's scale
            and offset span), NaN where the task may not miss values, or a forecast that is not finite.
        OSError: `output` or `gif` cannot be written; the message names it.
    """
    for path in (output, gif):
        if path is not None and path.exists() and os.path.samefile(path, frames.path):
            raise ValueError(f"{path}: is the input, expected another file for the forecast")

    shape: tuple[int, ...] = ()

    def write(path: Path) -> None:
        nonlocal shape
        with path.open("wb") as file:
            shape, first = forecast_into(file.write, model, task, frames, physical, count_out)
        if gif is not None:
            from unistd.report.pictures import save_gif  # matplotlib is slow to import

            write_atomically(gif, lambda path: save_gif(path, first, model.tasks[task]))

    write_atomically(output, write)
    return shape


@torch.no_grad()
def forecast_into(
    write: Callable[[bytes], object],
    model: UniSTD,
    task: str,
    frames: NpyArray | StreamedArray,
    physical: bool = False,
    count_out: int | None = None,
) -> tuple[tuple[int, ...], np.ndarray]:
    """As `write_forecast`, into what takes bytes; returns the forecast's shape and the first sample, input and
    forecast, normalised."""
    spec, device = model.tasks[task], next(model.parameters()).device
    single = len(frames.shape) == 4
    count = 1 if single else frames.shape[0]
    target = (count_out or spec.frames_out, *spec.target_shape[1:])
    shape, header = target if single else (count, *target), BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    write(header.getvalue())
    for start in range(0, count, SAMPLES):
        inputs = read_samples(frames, start, min(start + SAMPLES, count), spec, physical)
        forecast = roll_out(model, task, inputs.to(device), target[0]).cpu().numpy()
        _check_forecast(forecast, frames, start)
        values = forecast * np.float32(spec.scale) + np.float32(spec.offset) if physical else forecast
        write(np.ascontiguousarray(values, "<f4").tobytes())
        if start == 0:
            first = np.concatenate([inputs[0], forecast[0]])
    return shape, first


def roll_out(model: UniSTD, task: str, inputs: Tensor, count: int) -> Tensor:
    """A forecast of any length: inputs (B, Tin, C, H, W) -> (B, count, C, H, W).

    What lies beyond the frames that the model was trained for is forecast from its own forecasts, whose values are
    brought into [0, 1], as the frames that it knows; errors grow with each round.
    """
    frames, known = inputs, inputs.shape[1]
    while frames.shape[1] < known + count:
        frames = torch.cat([frames, model(frames[:, -known:].clamp(0, 1), task=task)], dim=1)
    return frames[:, known : known + count]


def read_samples(frames: NpyArray | StreamedArray, start: int, stop: int, spec: TaskSpec, physical: bool) -> Tensor:
    """Samples [start:stop], (B, Tin, C, H, W) float32, normalised; NaN where the task may hold missing values.

    physical: the file is in the unit of the spec.
    """
    single = len(frames.shape) == 4
    part = frames.rows(0, frames.shape[0])[None] if single else frames.rows(start, stop)
    low, high = (spec.offset, spec.offset + spec.scale) if physical else (0, 1)
    numbers = part.dtype.kind in ("iuf" if physical else "f")
    values = (part.astype(np.float64) - low) / (high - low) if physical and numbers else part
    margin = _FAR - 0.5 if physical else 0.0
    if numbers:
        right = (values >= -margin) & (values <= 1 + margin)  # NaN compares false
        numbers = bool((right | np.isnan(values) if spec.missing else right).all())
    if not numbers:
        kind = f"numbers of about {low:g} to {high:g} {spec.unit}" if physical else "floats in [0, 1]"
        where = "" if single or physical else f" in samples {start} to {stop - 1}"
        raise ValueError(
            f"{frames.path}: expected {kind}{' or NaN' if spec.missing else ''}, found {part.dtype} from {part.min()} "
            f"to {part.max()}{where}"
        )
    return torch.from_numpy(values.astype(np.float32))


def _check_forecast(forecast: np.ndarray, frames: NpyArray | StreamedArray, start: int) -> None:
    finite = np.isfinite(forecast).reshape(len(forecast), -1).all(1)
    if not finite.all():
        raise ValueError(
            f"{frames.path}: the forecast of sample {start + int(finite.argmin())} is NaN or Inf, expected numbers; "
            "its frames and the weights are finite"
        )
