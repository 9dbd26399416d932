"""Experts of RA-MoE layers as ordinary LoRA checkpoints, which PEFT loads."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from . import _checks, _files, _lora_file
from ._folding import low_rank
from ._wrappers import plain_name, unwrapped, writes
from .conv1d import RAMoEConv1D
from .fixed_gates import chosen_gates
from .fused import RAMoEFusedLinear
from .ranks import named_layers

_IN_PEFT = re.compile(r"(.+)\.ramoe_adapters\.[^.]+")  # a layer of `fastmoe_lora.peft`


def save_lora(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    expert: int | None = None,
    gates: Sequence[float] | Tensor | None = None,
) -> None:
    """Writes one ``expert``, or the mixture of all by fixed ``gates`` (see `fixed_gates`), as an ordinary LoRA
    checkpoint into the folder ``path``: PEFT's ``PeftModel.from_pretrained`` puts it on the model as it was before
    `adapt`, and the outputs are those of this model in evaluation with these gates.

    Scaling, gates and ranks, fractional ones too, are folded into B. The rank of a module is that of all its experts
    and splits together; modules without any active are left out. Of layers with a single expert neither argument is
    needed. Raises TypeError or ValueError before anything is written: for a router's gates, which depend on the input
    and are no LoRA; for layers that are no module of the original model (attention that is adapted as a whole); ranks
    or numbers that are not finite; and where nothing is active.
    """
    model = unwrapped(_checks.model(model))
    layers = named_layers(model)
    folder = _files.folder("path", path)
    _check_exported(model, layers)
    names = {name: _original(name) for name in layers}
    for original, count in Counter(names.values()).items():
        if count > 1:
            raise ValueError(
                f"model: {original!r} has {count} adapters of PEFT's, expected one: delete_adapter the others"
            )
    instead = "which no LoRA does (save_adapters keeps all of it)"
    mixtures = {name: chosen_gates(name, layer, expert, gates, instead) for name, layer in layers.items()}
    sources = [tensor for layer in layers.values() for tensor in (layer.lora_A, layer.lora_B, layer.rank)]
    factors = {names[name]: low_rank(name, layer, mixtures[name]) for name, layer in layers.items()}
    factors = {name: pair for name, pair in factors.items() if len(pair[0])}
    if not factors:
        raise ValueError("model: no expert has an active column and a gate that is not 0, expected at least one")
    if not writes(sources):
        return
    from safetensors.torch import save

    halves = {name: dict(zip(("lora_A", "lora_B"), pair, strict=True)) for name, pair in factors.items()}
    tensors = {
        f"{_lora_file.PREFIX}{name}.{half}.weight": value.cpu().contiguous()
        for name, pair in halves.items()
        for half, value in pair.items()
    }
    others = {_original(name) for name, _ in model.named_modules() if name} - factors.keys()
    config = _config({name: len(pair[0]) for name, pair in factors.items()}, others)
    config["fan_in_fan_out"] = all(isinstance(layer, RAMoEConv1D) for layer in layers.values())
    contents = {
        _lora_file.TENSORS: save(tensors, metadata={"format": "pt"}),
        _lora_file.CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf-8"),
    }
    _files.write(folder, contents)


def _original(name: str) -> str:
    """The name that a module had before it was adapted and wrapped, by `adapt` or by PEFT."""
    return plain_name(_IN_PEFT.sub(r"\1", name).removeprefix(_lora_file.PREFIX))


def _config(ranks: dict[str, int], others: Iterable[str]) -> dict[str, Any]:
    """PEFT's config for modules of these ranks, whose scaling is 1."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT takes a name for the end of a name, and in patterns for a regular expression.
    targets: Any = sorted(ranks)
    names = [*ranks, *others]
    if any(name.endswith(f".{target}") for target in ranks for name in names):
        targets = "|".join(re.escape(name) for name in sorted(ranks))
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
    }


def _check_exported(model: nn.Module, layers: Iterable[str]) -> None:
    """That all of them were modules of the model before `adapt`."""
    for name in layers:
        if not name:
            raise ValueError("model: got an RA-MoE layer itself, expected a model around it")
        if isinstance(model.get_submodule(name), RAMoEFusedLinear):
            raise ValueError(
                f"model: layer {name!r} is fused, expected layers that are adapted apart: a LoRA has one for each"
            )
        around = name.rpartition(".")[0]
        kind = type(model.get_submodule(around))
        if kind.__module__ == f"{__package__}.attention":
            raise ValueError(
                f"model: layer {name!r} is a part of {around!r}, a {kind.__name__}, expected layers that were an "
                "nn.Linear: stock PEFT knows no such part of nn.MultiheadAttention"
            )
