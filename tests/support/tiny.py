"""A UniSTD small enough to test on: three tasks of unlike shapes, two blocks of width 32."""

import torch
from torch import Tensor

from fastmoe_lora import ramoe_layers
from unistd import AdapterConfig, TaskSpec, TrunkConfig, UniSTD

TRUNK = TrunkConfig(width=32, depth=2, heads=2, mlp_ratio=2.0, input_norm=True)
ADAPTER = AdapterConfig(qkv_experts=3, temporal_width=16, max_rank=4, init_rank=2.5, backend="packed")


def spec(name: str, channels: int, height: int, width: int, frames_in: int, frames_out: int, patch: int) -> TaskSpec:
    return TaskSpec(name, name, "test", channels, height, width, frames_in, frames_out, patch, 1.0, 0.0, "")


# "sea" and "city" have 16 tokens each, "rain" has 6; "rain" stands between them so that packing has to reorder.
SPECS = (spec("sea", 2, 8, 8, 3, 2, 2), spec("rain", 1, 8, 12, 2, 4, 4), spec("city", 3, 24, 24, 4, 1, 6))


def tiny_model(tasks=SPECS, trunk=TRUNK, pretrained=None, awake=True, **options) -> UniSTD:
    """A model in float64, so that the same can be told from nearly the same; `awake`: with adapters that act."""
    options = {"adapter": ADAPTER, "hidden": 8, **options}
    model = UniSTD(tasks, trunk, pretrained, **options).double().eval()
    return wake(model) if awake else model


def wake(model: UniSTD) -> UniSTD:
    """Random values in all that starts at zero: experts, routers that decide, temporal modules, decoders' readouts."""
    with torch.no_grad():
        for _, layer in ramoe_layers(model):
            layer.lora_B.normal_(std=0.2)
            layer.router.weight.normal_()
        for block in model.trunk.blocks:
            block.temporal.up.weight.normal_(std=0.2)
        for decoder in model.decoders.values():
            decoder.readout.weight.normal_(std=0.1)
    return model


def batch(specs=SPECS, samples: int = 2) -> dict[str, Tensor]:
    """Random frames of every task, (samples, Tin, C, H, W) float64; one sample more for each further task."""
    return {
        spec.name: torch.rand(samples + index, *spec.input_shape, dtype=torch.float64)
        for index, spec in enumerate(specs)
    }


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())
