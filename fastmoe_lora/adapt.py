"""RA-MoE put into a model that exists: timm, Hugging Face, open_clip or your own."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from . import _carried, _checks, _fusing
from ._carried import conv1d_class
from ._fused_paths import layer_calls
from ._weight_reads import weight_reads
from .attention import attention_class
from .conv1d import RAMoEConv1D
from .layer import RAMoELinear
from .ranks import ramoe_layers

_FIRST = "adapt first, wrap then"


def adapt(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Freezes ``model`` and replaces, in place, linear layers and attention modules by adapted ones; returns the model.

    Adapters that it has already go on learning. ``rules`` maps a pattern over module names (shell style:
    ``"blocks.*.attn.qkv"``) to options of `RAMoELinear`; the first pattern that matches a name decides. ``nn.Linear``
    becomes `RAMoELinear`, ``Conv1D`` of transformers (GPT-2) `RAMoEConv1D`; ``nn.MultiheadAttention``, which never
    calls its projections, becomes `RAMoESelfAttention` as a whole (`RAMoECrossAttention` with a kdim or vdim). A rule
    with ``"fuse": ["query", "key", "value"]`` (names within each module that the pattern matches and that has them all)
    makes ``nn.Linear`` layers that read the same input one layer, `RAMoEFusedLinear`, beside them. A module that the
    model has under several names is replaced by one module under all of them. Hooks, modes, ties and
    attributes that others have set survive, and `unadapt` takes all back. Fused paths that read weights instead of
    calling layers are switched off around adapted layers where the module has a switch (PyTorch's encoders in
    inference; timm's BEiT, EVA and Swin v2).

    Raises ValueError or TypeError for a pattern that matches neither or decides nothing; for a model that is compiled
    or distributed; and naming the module whose options are wrong, whose forward is its own, which carries what an
    adapted one cannot, or whose weight the code of a module around it reads. Nothing is changed then. What that search
    cannot see, `check_adapters` does.
    """
    _checks.model(model)
    _check_rules(rules)
    _carried.check_wrapped(model, [], _FIRST)
    groups = _fusing.groups(model, rules)
    chosen = dict(_matches(model, rules, groups))
    for pattern in (pattern for pattern, options in rules.items() if _fusing.FUSE not in options):
        if not any(fnmatchcase(name, pattern) for name in chosen):
            kinds = "nn.Linear, nn.MultiheadAttention or Conv1D"
            raise ValueError(f"rules: {pattern!r} matches no {kinds} of {type(model).__name__}")
        if pattern not in chosen.values():
            raise ValueError(f"rules: {pattern!r} decides nothing: patterns before it match all that it matches")
    joined = [name for group in groups for name in group.names]
    _carried.check_wrapped(model, [*chosen, *joined], _FIRST)
    decided: dict[nn.Module, str] = {}
    for name, pattern in chosen.items():
        first = decided.setdefault(model.get_submodule(name), name)
        if rules[pattern] != rules[chosen[first]]:
            raise ValueError(f"rules: {name!r} is {first!r} by another name, expected the same options for both")
    places = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if module in decided]
    settings = call_settings(model, [name for name, _ in places] + joined)
    adapted = {module: _adapted(name, module, rules[chosen[name]]) for module, name in decided.items()}
    fused = [(group, *_fusing.built(group, rules[group.pattern])) for group in groups]
    learning = {parameter for parameter in _adapters(model) if parameter.requires_grad}
    for module in model.modules():
        _freeze(module, learning)
    for module, new in adapted.items():
        _carried.hand_on(module, new)
    for name, module in places:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, adapted[module])
    for group, layer, parts in fused:
        _fusing.put(group, layer, parts)
    for module, values in settings.items():
        _carried.note(module, "settings", {attribute: getattr(module, attribute) for attribute in values})
        for attribute, value in values.items():
            setattr(module, attribute, value)
    return model


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of what learns in an adapted model. Raises TypeError for what is no module."""
    _checks.model(model)
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _check_rules(rules: Mapping[str, Mapping[str, Any]]) -> None:
    _checks.instance("rules", rules, Mapping, "a mapping of patterns to options")
    if not rules:
        raise ValueError("rules: got none, expected at least one pattern")
    for pattern, options in rules.items():
        _checks.instance("rules", pattern, str, "a pattern over module names")
        _checks.instance(f"rules: {pattern!r}", options, Mapping, "a mapping of option names to values")
        for option in options:
            _checks.instance(f"rules: {pattern!r}", option, str, "the name of an option")
        _fusing.check_rule(pattern, options)


def _adapters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All parameters of RA-MoE layers but the linear layers' own."""
    for _, layer in ramoe_layers(model):
        yield from (parameter for name, parameter in layer.named_parameters() if name not in ("weight", "bias"))


def _adapted(name: str, module: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    try:
        new: nn.Module = _kind(module).sharing(module, **options)
        _carried.check(module, new)
        return new
    except (TypeError, ValueError) as error:
        refusal = ValueError if isinstance(error, ValueError) else TypeError
        raise refusal(f"rules: {name!r}: {error}") from None


def _kind(module: Any) -> Any:
    """The class of ours that stands in for the module's."""
    # One of those with `sharing`, each of which takes modules of its own kind.
    if isinstance(module, nn.Linear):
        return RAMoELinear
    return RAMoEConv1D if conv1d_class(module) else attention_class(module)


def _freeze(module: nn.Module, learning: set[nn.Parameter]) -> None:
    """Freezes a module's own parameters but those that go on ``learning``."""
    mine = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    frozen = {name: True for name, parameter in mine.items() if parameter.requires_grad and parameter not in learning}
    _carried.note(module, "learns", frozen)
    for name in frozen:
        mine[name].requires_grad_(False)


def call_settings(model: nn.Module, chosen: Iterable[str]) -> dict[nn.Module, dict[str, Any]]:
    """What is to be set in the modules around those chosen so that they call them; ValueError where they do not."""
    around: dict[nn.Module, dict[str, str]] = {}  # module -> name within it -> name
    for name in chosen:
        parts = name.split(".")
        for depth in range(len(parts)):
            within = ".".join(parts[depth:])
            around.setdefault(model.get_submodule(".".join(parts[:depth])), {})[within] = name
    settings = {module: layer_calls(module, set(inside)) for module, inside in around.items()}
    for module, inside in around.items():
        for read in weight_reads(module, settings[module]):
            for within, name in inside.items():
                if read.is_of(tuple(within.split("."))):
                    raise ValueError(
                        f"rules: {name!r}: expected a layer that is called, but {read.where} reads its weight: "
                        f"an adapter would be passed by"
                    )
    return settings


def _matches(
    model: nn.Module, rules: Mapping[str, Mapping[str, Any]], groups: list[_fusing.Group]
) -> Iterator[tuple[str, str]]:
    """(name, pattern) of what is to be replaced; the insides of attention modules and of RA-MoE layers are not, nor
    what is joined in ``groups``."""
    joined = {group.parent.get_submodule(member): group for group in groups for member in group.members}
    order = list(rules)
    closed: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if name.startswith(closed) and closed:
            continue
        if isinstance(module, (RAMoELinear, nn.MultiheadAttention)) or _carried.is_of_peft(module):
            closed = (*closed, f"{name}.")
        if name and (isinstance(module, (nn.Linear, nn.MultiheadAttention)) or conv1d_class(module)):
            pattern = next((p for p in rules if fnmatchcase(name, p) and _fusing.FUSE not in rules[p]), None)
            if pattern is not None and (group := joined.get(module)):
                if order.index(pattern) < order.index(group.pattern):
                    both = f"{pattern!r} and by {group.pattern!r}, which fuses it"
                    raise ValueError(f"rules: {name!r} is matched by {both}: expected one of them")
            elif pattern is not None:
                yield name, pattern
