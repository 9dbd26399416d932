"""LoRA checkpoints that people have, as the experts of RA-MoE layers."""

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks, _files, _lora_file
from .adapt import adapt
from .layer import RAMoELinear

_FROM_FILES = ("num_experts", "init_rank", "scaling")


def adapters_from_lora(
    model: nn.Module,
    paths: Iterable[str | os.PathLike[str]],
    *,
    leave_out: Sequence[str] = (),
    **options: Any,
) -> nn.Module:
    """Adapts ``model``, in place, with LoRA checkpoints as experts; returns the model.

    Each of ``paths`` is a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT's
    ``save_pretrained`` writes them for this model. It becomes the expert of its place in the list, with its own rank in
    each layer and its scaling folded in: with a gate of 1 for it alone (`fixed_gates`) the model computes what PEFT's
    does with that adapter active. In a layer that a checkpoint does not adapt its expert has rank 0. All of it goes on
    learning, ranks up to the largest of the layer or to ``max_rank``. ``options`` are those of `RAMoELinear`, for all
    layers, but num_experts, init_rank and scaling, which come from the checkpoints.

    ``leave_out``: patterns (shell style) over names of tensors to ignore, as of a head that was saved beside the
    adapters. Raises OSError, TypeError or ValueError naming the file and the entry, tensor or module that is wrong,
    before anything is changed: options of PEFT's beyond ordinary LoRA (DoRA, trained biases, PiSSA, ...), modules that
    the model lacks or that are no ``nn.Linear``, other shapes, tensors that are missing or superfluous, numbers that
    are NaN or infinite, and what `adapt` refuses.
    """
    _checks.model(model)
    folders = _folders(paths)
    leave_out = _patterns(leave_out)
    for name in _FROM_FILES:
        if name in options:
            raise ValueError(f"options: {name} comes from the checkpoints, expected none")
    if options.get("interpolation") == "as_printed":
        raise ValueError("options: interpolation 'as_printed' switches whole ranks off, expected 'linear' or 'sampled'")
    files = [_lora_file.read(folder, model, leave_out) for folder in folders]
    for pattern in leave_out:
        if not any(fnmatchcase(name, pattern) for file in files for name in file.left_out):
            raise ValueError(f"leave_out: {pattern!r} matches no tensor of the checkpoints")
    adapted = {name for file in files for name in file.modules}
    experts = {
        name: _Experts(name, module, [file.modules.get(name) for file in files], options)
        for name, module in model.named_modules()
        if name in adapted
    }
    try:
        adapt(model, {escape(name): expert.options for name, expert in experts.items()})
    except (TypeError, ValueError) as error:
        refusal = ValueError if isinstance(error, ValueError) else TypeError
        raise refusal(f"model: {str(error).removeprefix('rules: ')}") from None
    for name, expert in experts.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, RAMoELinear)
        expert.fill(layer)
    return model


class _Experts:
    """What the checkpoints add to one module, as the adapters of a layer in its place."""

    def __init__(self, name: str, module: Any, added: list[_lora_file.LowRank | None], options: dict[str, Any]):
        weight = module.weight
        if weight.is_meta:
            raise ValueError(f"model: {name!r} is on the meta device, expected a layer with numbers")
        present = [one for one in added if one is not None]
        scaling = max((one.scaling for one in present), key=abs) or 1.0
        kinds = {tensor.dtype for one in present for tensor in (one.A, one.B)}
        dtype = weight.dtype if kinds == {weight.dtype} else torch.promote_types(weight.dtype, torch.float32)
        self.factors: list[tuple[Tensor, Tensor] | None] = []
        for place, one in enumerate(added):
            pair = None if one is None else (one.A.to(dtype), (one.B.double() * (one.scaling / scaling)).to(dtype))
            for half in pair or ():
                if fault := _checks.element_fault(
                    f"{name}: expert {place}", half, half.isfinite(), f"finite in {dtype}"
                ):
                    raise ValueError(f"paths: {fault}")
            self.factors.append(pair)
        ranks = [len(pair[0]) if pair else 0 for pair in self.factors]
        most = options.get("max_rank", max(ranks))
        _checks.whole("max_rank", most, lambda rank: rank >= max(ranks), f"at least {max(ranks)}, a rank of {name!r}")
        mean = min(sum(ranks) / len(ranks), most)  # the budget of the ranks is their sum
        self.options = {"dtype": dtype, **options, "max_rank": most, "init_rank": mean}
        self.options |= {"num_experts": len(added), "scaling": scaling}

    @torch.no_grad()
    def fill(self, layer: RAMoELinear) -> None:
        """Columns beyond an expert's rank stay as in a fresh layer."""
        for expert, pair in enumerate(self.factors):
            if pair is None:
                layer.rank[:, expert] = 0
                continue
            A, B = pair
            layer.lora_A[:, expert, : len(A)] = A.to(layer.lora_A.device)
            layer.lora_B[:, expert, :, : len(A)] = B.to(layer.lora_B.device).unflatten(0, (len(layer.lora_B), -1))
            layer.rank[:, expert] = len(A)


def _folders(paths: Any) -> list[Path]:
    if isinstance(paths, (str, os.PathLike)) or not isinstance(paths, Iterable):
        raise TypeError(f"paths: got {_checks.shown(paths)}, expected a list of folders")
    folders = [_files.folder("paths", path) for path in paths]
    if not folders:
        raise ValueError("paths: got none, expected at least one folder")
    return folders


def _patterns(leave_out: Any) -> list[str]:
    if isinstance(leave_out, str) or not isinstance(leave_out, Iterable):
        raise TypeError(f"leave_out: got {_checks.shown(leave_out)}, expected a list of patterns over names")
    return [_checks.instance("leave_out", pattern, str, "a pattern over names") for pattern in leave_out]
