"""Which layers of a model are joined, and how they are put together and taken apart."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from . import _carried, _checks
from .fused import RAMoEFusedLinear, RAMoEPart

FUSE = "fuse"  # the option of a rule
Rules = Mapping[str, Mapping[str, Any]]


class Group(NamedTuple):
    """Layers of one module, by their names within it; ``pattern`` is that of the rule."""

    name: str
    parent: nn.Module
    members: tuple[str, ...]
    pattern: str

    @property
    def names(self) -> list[str]:
        return [f"{self.name}.{member}".lstrip(".") for member in self.members]


def check_rule(pattern: str, options: Mapping[str, Any]) -> None:
    """That a rule names the layers to join, if it does, as it should."""
    names = options.get(FUSE, ("", "-"))
    where = f"rules: {pattern!r}: fuse: got {_checks.shown(names)}"
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{where}, expected a list of names of layers")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{where}, expected the names of two layers or more, each once")


def groups(model: nn.Module, rules: Rules) -> list[Group]:
    """Those that the rules join, each parent once, by the first pattern that matches it."""
    fusing = {pattern: tuple(options[FUSE]) for pattern, options in rules.items() if FUSE in options}
    found: list[Group] = []
    for name, module in model.named_modules() if fusing else ():
        for pattern, members in fusing.items():
            if fnmatchcase(name, pattern) and all(_member(module, member) is not None for member in members):
                found.append(Group(name, module, members, pattern))
                break
    for pattern, members in fusing.items():
        if all(group.pattern != pattern for group in found):
            raise ValueError(
                f"rules: {pattern!r} matches no module with {', '.join(members)} of {type(model).__name__}, "
                f"or patterns before it match all that it matches"
            )
    _check_alone(model, found)
    return found


def _check_alone(model: nn.Module, found: list[Group]) -> None:
    """That the layers to join are linear ones, and each of them is in one place."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    for group in found:
        parents = len(places[group.parent])
        for name, member in zip(group.names, group.members, strict=True):
            linear = group.parent.get_submodule(member)
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"rules: {name!r}: fuse: got a {type(linear).__name__}, expected an nn.Linear")
            if len(places[linear]) > parents:
                other = next(place for place in places[linear] if place != name)
                raise ValueError(f"rules: {name!r} is {other!r} by another name, expected a layer of one place")


def built(group: Group, options: Mapping[str, Any]) -> tuple[RAMoEFusedLinear, list[RAMoEPart]]:
    """The joined layer and what stands in for each; nothing is changed yet."""
    linears: list[Any] = [group.parent.get_submodule(member) for member in group.members]  # nn.Linear, see above
    for name, linear in zip(group.names, linears, strict=True):
        for key in ("weight", "bias"):
            if not isinstance(getattr(linear, key), nn.Parameter | None):
                raise ValueError(f"rules: {name!r}: its {key} is computed, expected a parameter that is there")
    options = {option: value for option, value in options.items() if option != FUSE}
    if hasattr(group.parent, own := layer_name(group)):
        raise ValueError(f"rules: {group.name!r} has an attribute {own!r}, expected none: the joined layer's name")
    try:
        layer = RAMoEFusedLinear.joining(linears, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rules: {group.name!r}: {error}") from None
    parts = [RAMoEPart(layer, index, linear) for index, linear in enumerate(linears)]
    for name, linear, part in zip(group.names, linears, parts, strict=True):
        try:
            _carried.check(linear, part)
        except ValueError as error:
            raise ValueError(f"rules: {name!r}: {error}") from None
    return layer, parts


def layer_name(group: Group) -> str:
    """Of the joined layer, beside those that it joins: "query_key_value"."""
    return "_".join(member.replace(".", "_") for member in group.members)


def put(group: Group, layer: RAMoEFusedLinear, parts: list[RAMoEPart]) -> None:
    """The parts in the layers' place, the joined layer beside them."""
    for member, part in zip(group.members, parts, strict=True):
        owner, _, attribute = member.rpartition(".")
        _carried.hand_on(group.parent.get_submodule(member), part)
        setattr(group.parent.get_submodule(owner), attribute, part)
    group.parent.add_module(layer_name(group), layer)
    group.parent.register_forward_pre_hook(layer.begin)
    group.parent.register_forward_hook(layer.end, always_call=True)


def take_out(model: nn.Module) -> None:
    """Joined layers of which no part is left go, with their hooks."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, RAMoEFusedLinear):
                delattr(parent, name)
                for hooks in (parent._forward_pre_hooks, parent._forward_hooks):
                    for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is layer]:
                        del hooks[key]
                        parent._forward_hooks_always_called.pop(key, None)


def _member(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None
