"""Exported models beside the models: the largest difference of their outputs, and the size of the files.

An adapted ViT-B/16 of open_clip and the demo's UniSTD, random weights, their adapters too; ranks fractional and frozen.
"""

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.harness.machine import commit, describe_machine, describe_versions
from fastmoe_lora import adapt, freeze_ranks, ramoe_layers
from unistd.export import FORMATS, compare
from unistd.model.torchvision_ops import define_missing_ops

TASK = "taxibj"  # of the demo's ten


@dataclass(frozen=True)
class Outcome:
    """One file: megabytes (10^6 bytes) of the model's weights and of the file, and how far its outputs are off."""

    model: str
    ranks: str
    format: str
    weights_mb: float
    file_mb: float
    difference: float
    largest: float
    seconds: float


class _Forecast(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames, task=TASK)


def vit() -> tuple[nn.Module, tuple[int, ...]]:
    """open_clip's ViT-B/16 as the paper adapts it: six experts on QKV and on the output projection of each block."""
    define_missing_ops()
    import open_clip

    model = open_clip.create_model("ViT-B-16", pretrained=None).visual
    return adapt(model, {"*.attn": {"num_experts": 6}}), (3, 224, 224)


def demo() -> tuple[nn.Module, tuple[int, ...]]:
    """The demo's model with one of its tasks."""
    from unistd.training.run import build_model
    from unistd.training.settings import load_config

    model = build_model(load_config("demo", [f"tasks=[{TASK}]"]))
    for name, parameter in model.named_parameters():
        if name.endswith(("up.weight", "up.bias", "readout.weight")):  # start at zero
            nn.init.normal_(parameter, std=0.02)
    return _Forecast(model), model.tasks[TASK].input_shape


MODELS = {"ViT-B/16": vit, f"demo's UniSTD, {TASK}": demo}


@torch.no_grad()
def measure(name: str, frozen: bool, folder: Path) -> list[Outcome]:
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    for _, layer in ramoe_layers(model):
        nn.init.normal_(layer.lora_B, std=0.02)
    if frozen:
        freeze_ranks(model)
    model.eval()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    outcomes = []
    for kind, (write, read) in FORMATS.items():
        start, file = time.perf_counter(), folder / f"model.{kind}"
        file.write_bytes(write(model, torch.rand(2, *shape), {}))
        seconds = time.perf_counter() - start
        difference, largest = compare(model, read(file), shape)
        size = file.stat().st_size / 1e6
        ranks = "frozen" if frozen else "fractional"
        outcomes.append(Outcome(name, ranks, kind, weights, size, difference, largest, round(seconds, 1)))
        file.unlink()
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """One line a file."""
    lines = ["model                  ranks       format  weights      file   difference  of values up to"]
    for o in outcomes:
        sizes = f"{o.weights_mb:7.2f} {o.file_mb:9.2f} MB"
        lines.append(f"{o.model:<22} {o.ranks:<11} {o.format:<6} {sizes}  {o.difference:10.2g}  {o.largest:10.3g}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench export", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, default=Path("bench/results"), help="folder for export.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [
            o for name in options.models for frozen in (False, True) for o in measure(name, frozen, Path(folder))
        ]
    options.output.mkdir(parents=True, exist_ok=True)
    about = {"machine": describe_machine(torch.device("cpu")), "versions": describe_versions(), "commit": commit()}
    record = about | {"files": [asdict(outcome) for outcome in outcomes]}
    (options.output / "export.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(outcomes))
