"""Weight files of Vision Transformers: reading them, and open_clip's and timm's names to ours.

Our names: `norm_in`, `blocks.I.{norm1, attention.qkv, attention.proj, norm2, mlp.fc1, mlp.fc2}`, `norm_out`, each with
`.weight` and `.bias`, all float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unistd.messages import shown
from unistd.model.config import TrunkConfig
from unistd.state_files import read_state

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PARTS = ("weight", "bias")
_BLOCK = re.compile("0|[1-9][0-9]{0,3}")


@dataclass(frozen=True)
class Naming:
    """Names of one library: where its blocks are, and its names below a block and beside the blocks -> ours."""

    blocks: str
    below: Mapping[str, str]
    scales: Mapping[str, str]  # LayerScale -> the linear layer of ours in front of it
    beside: Mapping[str, tuple[str, ...]]  # ours -> the library's, the first one that is there


_OPEN_CLIP_BELOW = {
    "ln_1.": "norm1.",
    "attn.in_proj_": "attention.qkv.",
    "attn.out_proj.": "attention.proj.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_OPEN_CLIP_SCALES = {"ls_1.gamma": "attention.proj", "ls_2.gamma": "mlp.fc2"}
_TIMM_BELOW = {
    "norm1.": "norm1.",
    "attn.qkv.": "attention.qkv.",
    "attn.proj.": "attention.proj.",
    "norm2.": "norm2.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_TIMM_SCALES = {"ls1.gamma": "attention.proj", "ls2.gamma": "mlp.fc2"}


def _open_clip(prefix: str) -> Naming:
    beside = {"norm_in": (f"{prefix}ln_pre",), "norm_out": (f"{prefix}ln_post",)}
    return Naming(f"{prefix}transformer.resblocks.", _OPEN_CLIP_BELOW, _OPEN_CLIP_SCALES, beside)


# In a whole CLIP the image tower is `visual.` and `transformer.` is the text tower, so `visual.` is looked for first.
NAMINGS = (
    _open_clip("visual."),
    _open_clip(""),
    Naming("blocks.", _TIMM_BELOW, _TIMM_SCALES, {"norm_in": ("norm_pre",), "norm_out": ("norm", "fc_norm")}),
)


def read_weights(path: str | Path, config: TrunkConfig) -> dict[str, Tensor]:
    """The weights of a Vision Transformer in a local file, by our names.

    Args:
        path: .safetensors, or .pt/.pth/.bin as `torch.save` writes it (a state dict, or a checkpoint that holds one
            under "state_dict" or "model"), read with weights_only=True: no code in the file is run.
        config: the sizes that are expected.

    Raises:
        FileNotFoundError: no such file, or a folder, a pipe or the like.
        ValueError: the file cannot be read, is damaged, or holds another architecture.
    """
    # of a whole CLIP the text tower stays on disk
    return convert_weights(read_state(path, "pretrained", "visual."), config, str(path))


def convert_weights(state: Mapping[str, Tensor], config: TrunkConfig, source: str) -> dict[str, Tensor]:
    """A state dict of open_clip (a whole CLIP or its VisionTransformer) or timm (VisionTransformer), by our names.

    A LayerScale is multiplied into the linear layer in front of it, an absent bias is zero: both are the same function.

    Args:
        source: what the state dict comes from, for error messages.

    Raises:
        ValueError: `source` is no Vision Transformer of these libraries, or has other sizes or parts than `config`.
    """
    naming = next((naming for naming in NAMINGS if any(key.startswith(naming.blocks) for key in state)), None)
    if naming is None:
        expected = " or ".join(repr(naming.blocks + "0...") for naming in NAMINGS)
        raise ValueError(f"{source}: no Vision Transformer of open_clip or timm (expected keys like {expected})")
    converted: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    depth = 0
    for key, value in state.items():
        if not key.startswith(naming.blocks):
            continue
        index, _, below = key.removeprefix(naming.blocks).partition(".")
        theirs = next((prefix for prefix in naming.below if below.startswith(prefix)), "")
        part = below.removeprefix(theirs)
        if not _BLOCK.fullmatch(index) or (below not in naming.scales and not (theirs and part in PARTS)):
            raise ValueError(
                f"{source}: {shown(key)} has no place in a plain pre-norm block; this variant is not supported"
            )
        depth = max(depth, int(index) + 1)
        if below in naming.scales:
            scales[f"blocks.{index}.{naming.scales[below]}"] = value
        else:
            converted[f"blocks.{index}.{naming.below[theirs]}{part}"] = value
    if depth != config.depth:
        raise ValueError(f"{source}: found {depth} blocks, expected {config.depth}")
    for ours, candidates in naming.beside.items():
        for name in candidates:
            if f"{name}.weight" in state and f"{ours}.weight" not in converted:
                there = [part for part in PARTS if f"{name}.{part}" in state]
                converted |= {f"{ours}.{part}": state[f"{name}.{part}"] for part in there}
    scales = {name: _checked(scale, f"LayerScale of {name}", (config.width,), source) for name, scale in scales.items()}
    return _fold_scales(_complete(converted, config, source), scales)


def expected_shapes(config: TrunkConfig) -> dict[str, tuple[int, ...]]:
    """Our names and shapes of the weights of a trunk."""
    width, hidden = config.width, config.mlp_hidden
    linears = {
        "attention.qkv": (3 * width, width),
        "attention.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    norms = ["norm_in"] * config.input_norm + ["norm_out"]
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(config.depth):
        norms += [f"blocks.{index}.norm1", f"blocks.{index}.norm2"]
        for name, shape in linears.items():
            shapes[f"blocks.{index}.{name}.weight"] = shape
            shapes[f"blocks.{index}.{name}.bias"] = shape[:1]
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def _complete(converted: dict[str, Tensor], config: TrunkConfig, source: str) -> dict[str, Tensor]:
    """Those of `converted` that the trunk has, all of them, in float32."""
    complete = {}
    for name, shape in expected_shapes(config).items():
        if name in converted:
            complete[name] = _checked(converted[name], name, shape, source)
        elif name.endswith(".bias") and "norm" not in name:
            complete[name] = torch.zeros(shape)
        else:
            raise ValueError(f"{source}: holds no weights for {name!r}")
    return complete


def _checked(value: Tensor, name: str, shape: tuple[int, ...], source: str) -> Tensor:
    """`value` in float32; nothing is computed before it is known to be the plain, finite tensor of that shape."""
    if value.shape != shape:
        raise ValueError(f"{source}: {name!r} has shape {tuple(value.shape)}, expected {shape}")
    if value.dtype not in DTYPES or value.layout != torch.strided or value.device.type != "cpu":
        what = f"{value.dtype}, {value.layout} on {value.device}"
        raise ValueError(f"{source}: {name!r} is {what}, expected numbers in 16, 32 or 64 bits")
    value = value.float()
    if not torch.isfinite(value).all():
        raise ValueError(f"{source}: {name!r} holds NaN or infinite numbers")
    return value


def _fold_scales(weights: dict[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, scale in scales.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * scale[:, None]
        weights[f"{name}.bias"] = weights[f"{name}.bias"] * scale
    return weights
