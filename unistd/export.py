"""A trained model of one task as one file that needs none of our code: ONNX, or a program of torch.export (.pt2)."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from unistd.files import write_atomically
from unistd.model import UniSTD
from unistd.training.run import TrainedRun

TOLERANCE = 1e-4  # of the model's largest value: other libraries sum in another order
METADATA = "unistd.json"  # the extra file of a .pt2 file; in ONNX each entry is a property "unistd.KEY"
_BATCHES = (1, 3)
_LARGEST_ONNX = 2**31 - 2**20  # bytes of one protocol buffer, less what is not weights
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Forecast = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written: its size in bytes, and how far its forecasts are from the model's."""

    path: Path
    size: int
    difference: float
    largest: float
    """the largest absolute value of the model's forecasts that were compared"""


def export(trained: TrainedRun, task: str, kind: str, output: Path) -> Exported:
    """Writes a run's forecast of `task`, frames (B, Tin, C, H, W) -> (B, Tout, C, H, W) for any B, to `output`.

    The file is read again and compared with the model before it is put in place; an error leaves what was there before.

    Args:
        kind: one of `FORMATS`.

    Raises:
        ValueError: forecasts that are not the model's, a model that is too large for the format, or packages that are
            not installed.
        OSError: `output` cannot be written; the message names it.
    """
    spec = trained.model.tasks[task]
    forecaster = _Forecaster(trained.model, task).eval()
    write, read = FORMATS[kind]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch will change in its own exporters
        content = write(forecaster, torch.rand(2, *spec.input_shape), metadata(trained, task))
        found: list[Exported] = []

        def save(path: Path) -> None:
            path.write_bytes(content)
            difference, largest = compare(forecaster, read(path), spec.input_shape, spec.missing)
            if not difference <= TOLERANCE * largest:
                raise ValueError(
                    f"{output}: its forecasts of task {task!r} differ from the model's by {difference:.2g}, "
                    f"expected at most {TOLERANCE * largest:.2g}; nothing was written"
                )
            found.append(Exported(output, len(content), difference, largest))

        write_atomically(output, save)
    return found[0]


def metadata(trained: TrainedRun, task: str) -> dict[str, str]:
    """What the file says of itself: its task, what goes in and comes out, and the physical values of its numbers."""
    spec = trained.model.tasks[task]
    missing = ", NaN where nothing was measured" if spec.missing else ""

    def shape(*sizes: int) -> str:
        return f"({', '.join(map(str, ('batch', *sizes)))})"

    about = {
        "task": spec.name,
        "title": spec.title,
        "input": f"frames {shape(*spec.input_shape)} float32, normalised to [0, 1]{missing}",
        "output": f"forecast {shape(*spec.target_shape)} float32, normalised likewise",
        "step": str(trained.step),
    }
    if task in trained.sources:
        about["trained_on"] = trained.sources[task]
    if task not in trained.units:  # a scale that may not be the run's is worse than none
        return about | {"physical": "unknown: the run's checkpoint, of an earlier release, does not hold its scale"}
    physical = {"scale": repr(float(spec.scale)), "offset": repr(float(spec.offset)), "unit": spec.unit}
    return about | physical | {"physical": "normalised value * scale + offset, in unit"}


class _Forecaster(nn.Module):
    """The part of a model that serves one task, its modules shared."""

    def __init__(self, model: UniSTD, task: str) -> None:
        super().__init__()
        self.task, self.model = task, copy.copy(model)
        self.model._modules, self.model._buffers = dict(model._modules), dict(model._buffers)
        self.model.tasks = {task: model.tasks[task]}
        self.model.encoders = nn.ModuleDict({task: model.encoders[task]})
        self.model.decoders = nn.ModuleDict({task: model.decoders[task]})
        for other in model.tasks.keys() - {task}:
            delattr(self.model, f"positions_{other}")

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames, task=self.task)


def compare(model: nn.Module, exported: Forecast, shape: tuple[int, ...], missing: bool = False) -> tuple[float, float]:
    """The largest difference of outputs for random inputs (B, *shape), and the model's largest value.

    missing: a tenth of the inputs is NaN.

    Raises ValueError where the outputs are not even of one shape.
    """
    difference = largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in _BATCHES:
        inputs = torch.rand(batch, *shape, generator=generator)
        if missing:
            inputs[torch.rand(inputs.shape, generator=generator) < 0.1] = torch.nan
        expected, got = model(inputs), exported(inputs)
        if got.shape != expected.shape:
            raise ValueError(f"the exported model gives {tuple(got.shape)}, expected {tuple(expected.shape)}")
        # maximum, unlike max, keeps NaN
        difference = torch.maximum((got - expected).abs().max(), torch.tensor(difference)).item()
        largest = max(largest, expected.abs().max().item())
    return difference, largest


def _batch() -> tuple[dict[int, object]]:
    return ({0: torch.export.Dim("batch", min=1)},)


def _onnx(forecaster: nn.Module, frames: Tensor, about: dict[str, str]) -> bytes:
    if missing := [name for name in _ONNX_PACKAGES if find_spec(name) is None]:
        raise ValueError(f"format onnx: not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
    size = sum(tensor.nbytes for tensor in forecaster.state_dict().values() if isinstance(tensor, Tensor))
    if size > _LARGEST_ONNX:
        raise ValueError(
            f"format onnx: {size / 2**30:.1f} GiB of weights, expected at most 2 GiB in a file; pt2 has no such limit"
        )
    program = torch.onnx.export(
        forecaster, (frames,), dynamo=True, verbose=False, dynamic_shapes=_batch(),
        input_names=["frames"], output_names=["forecast"],
    )  # fmt: skip
    program.model.metadata_props.update({f"unistd.{key}": value for key, value in about.items()})
    return program.model_proto.SerializeToString()


def _read_onnx(path: Path) -> Forecast:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda frames: torch.from_numpy(session.run(["forecast"], {"frames": frames.numpy()})[0])


def _pt2(forecaster: nn.Module, frames: Tensor, about: dict[str, str]) -> bytes:
    program = torch.export.export(forecaster, (frames,), dynamic_shapes=_batch())
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(about, indent=2)})
    return file.getvalue()


def _read_pt2(path: Path) -> Forecast:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


FORMATS = {"onnx": (_onnx, _read_onnx), "pt2": (_pt2, _read_pt2)}
