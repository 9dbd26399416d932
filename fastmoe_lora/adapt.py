"""RA-MoE put into a model that exists: timm, Hugging Face, open_clip or your own."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .layer import RAMoELinear
from .ranks import ramoe_layers


def adapt(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Freezes ``model`` and replaces, in place, its linear layers by adapted ones; returns the model.

    ``rules`` maps a pattern over module names (shell style: ``"blocks.*.attn.qkv"``) to options of `RAMoELinear`; the
    first pattern that matches a name decides. Raises ValueError for a pattern that matches no ``nn.Linear``, and for a
    linear layer inside ``nn.MultiheadAttention``, which reads its weight and never calls it.
    """
    chosen = dict(_matches(model, rules))
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name in chosen):
            raise ValueError(f"rules: {pattern!r} matches no nn.Linear of {type(model).__name__}")
    model.requires_grad_(False)
    for name, pattern in chosen.items():
        parent_name, _, attribute = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(f"rules: {pattern!r} matches {name!r}, which nn.MultiheadAttention never calls")
        setattr(parent, attribute, RAMoELinear.from_linear(getattr(parent, attribute), **rules[pattern]))
    return model


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of what learns in an adapted model."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _matches(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    adapted = tuple(f"{name}." for name, _ in ramoe_layers(model))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(adapted):
            pattern = next((pattern for pattern in rules if fnmatchcase(name, pattern)), None)
            if pattern is not None:
                yield name, pattern
