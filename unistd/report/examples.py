"""One typical forecast per task, and how each task uses the experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unistd.masks import fill_missing
from unistd.metrics import repeat_last
from unistd.model import UniSTD
from unistd.report.pictures import error_picture, first_channel_limits, frame_picture, strip
from unistd.tasks import TaskSpec

CANDIDATES = 9  # held-out samples that the shown one is the median of, by the model's error
SHOWN_IN, SHOWN_OUT = 3, 5  # frames in a strip


@dataclass(frozen=True)
class Example:
    """Strips (PNG data URIs) of one held-out sample, and the numbers of the frames they show."""

    inputs: str
    truth: str
    forecast: str
    error: str
    error_last: str
    inputs_at: list[int]
    outputs_at: list[int]
    gates: dict[str, Tensor]
    """mean gates (S, E) per layer, over the candidates"""


@torch.no_grad()
def example(model: UniSTD, spec: TaskSpec, dataset: Dataset) -> Example:
    """The sample of median error among the first of `dataset`, drawn; nobody picks the nice ones."""
    samples = [dataset[index] for index in range(min(CANDIDATES, len(dataset)))]
    inputs, targets = map(torch.stack, zip(*samples, strict=True))
    forecasts = model(inputs, task=spec.name)
    errors = (
        (forecasts - targets).square().nanmean((1, 2, 3, 4))
    )  # NaN, which is sorted last, where nothing is measured
    chosen = int(errors.argsort()[int(errors.isfinite().sum()) // 2])
    past, truth, forecast = (frames[chosen].numpy() for frames in (inputs, targets, forecasts))
    known = fill_missing(inputs) if spec.missing else inputs
    last = repeat_last(known, spec.frames_out)[chosen].numpy()
    largest = float(np.nan_to_num(np.abs(last - truth)).mean(1).max()) or 1.0
    limits = first_channel_limits(np.concatenate((past, truth)))
    inputs_at = _spread(spec.frames_in, SHOWN_IN)
    outputs_at = _spread(spec.frames_out, SHOWN_OUT)
    return Example(
        inputs=strip([frame_picture(past[t], spec, limits) for t in inputs_at]),
        truth=strip([frame_picture(truth[t], spec, limits) for t in outputs_at]),
        forecast=strip([frame_picture(forecast[t], spec, limits) for t in outputs_at]),
        error=strip([error_picture(forecast[t] - truth[t], largest) for t in outputs_at]),
        error_last=strip([error_picture(last[t] - truth[t], largest) for t in outputs_at]),
        inputs_at=[t - spec.frames_in + 1 for t in inputs_at],
        outputs_at=[t + 1 for t in outputs_at],
        gates=model.task_gates(inputs, spec.name),
    )


def _spread(frames: int, shown: int) -> list[int]:
    """Up to `shown` frame numbers, evenly spread over `frames`, the last one among them."""
    count = min(frames, shown)
    return [round(last) - 1 for last in np.linspace(frames / count, frames, count)]
