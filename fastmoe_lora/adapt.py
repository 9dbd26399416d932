"""RA-MoE put into a model that exists: timm, Hugging Face, open_clip or your own."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .attention import RAMoESelfAttention
from .layer import RAMoELinear


def adapt(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Freezes ``model`` and replaces, in place, linear layers and attention modules by adapted ones; returns the model.

    ``rules`` maps a pattern over module names (shell style: ``"blocks.*.attn.qkv"``) to options of `RAMoELinear`; the
    first pattern that matches a name decides. ``nn.Linear`` becomes `RAMoELinear`; ``nn.MultiheadAttention`` (as in
    open_clip), which never calls its projections, becomes `RAMoESelfAttention` as a whole. Raises ValueError for a
    pattern that matches neither.
    """
    chosen = dict(_matches(model, rules))
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name in chosen):
            kinds = "nn.Linear or nn.MultiheadAttention"
            raise ValueError(f"rules: {pattern!r} matches no {kinds} of {type(model).__name__}")
    model.requires_grad_(False)
    for name, pattern in chosen.items():
        parent, _, attribute = name.rpartition(".")
        module = model.get_submodule(name)
        replace = RAMoELinear.from_linear if isinstance(module, nn.Linear) else RAMoESelfAttention.from_attention
        setattr(model.get_submodule(parent), attribute, replace(module, **rules[pattern]))
    return model


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of what learns in an adapted model."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _matches(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(name, pattern) of what is to be replaced; the insides of attention modules and of RA-MoE layers are not."""
    closed: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(closed) and closed:
            continue
        if isinstance(module, (RAMoELinear, nn.MultiheadAttention)):
            closed = (*closed, f"{name}.")
        if name and isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            pattern = next((pattern for pattern in rules if fnmatchcase(name, pattern)), None)
            if pattern is not None:
                yield name, pattern
