"""What a module carries besides its parameters: handed on to the module that stands in for it, and given back."""

import copy
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .frozen_linear import FrozenLinear

_HOOKS: tuple[str, ...] = ("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook", "_forward_hooks")
_HOOKS += ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")
_HOOKS += ("_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks")
_HOOKS += ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
_OWN = {
    nn.Linear: frozenset(vars(nn.Linear(1, 1, device="meta"))),
    nn.MultiheadAttention: frozenset(vars(nn.MultiheadAttention(1, 1, device="meta"))),
}
_CONV1D = {("transformers.pytorch_utils", "Conv1D"), ("transformers.modeling_utils", "Conv1D")}
_CONV1D_OWN = frozenset(vars(nn.Module())) | {"nf", "nx"}
# Subclasses whose own forward computes what nn.Linear's does.
_PLAIN = {("timm.layers.linear", "Linear"), ("transformers.models.falcon.modeling_falcon", "FalconLinear")}
_PLAIN |= {(FrozenLinear.__module__, FrozenLinear.__name__)}
_WRAPPERS = {"OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
_RECORD, _BEFORE = "_stands_in_for", "_before_adapt"


def check_forward(module: nn.Module) -> None:
    """ValueError unless ``module`` computes what the class does that is adapted."""
    base = _base(module)
    kind = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    if "forward" in vars(module):
        raise ValueError(f"its forward has been replaced, expected that of the class {type(module).__name__}")
    if "_compiled_call_impl" in vars(module):
        raise ValueError("it has been compiled, expected one that is not: adapt first, compile then")
    if kind is not base and (kind.__module__, kind.__name__) not in _PLAIN:
        raise ValueError(f"it is a {type(module).__name__}, whose forward is its own, expected {_named(base)}'s")


def check_wrapped(model: nn.Module, names: Iterable[str], hint: str) -> None:
    """ValueError, with a ``hint``, if the model, or what is around the modules of these names, is compiled or
    distributed."""
    parts = [name.split(".") for name in names]
    around = [".".join(part[:depth]) for part in parts for depth in range(len(part))]
    for name in dict.fromkeys(["", *around]):
        kinds = {base.__name__ for base in type(model.get_submodule(name)).__mro__ if base.__module__[:5] == "torch"}
        if found := sorted(kinds & _WRAPPERS):
            inside = f"{name!r} is" if name else "got"
            raise ValueError(f"model: {inside} a {found[0]}, expected the plain module: {hint}")


def check(module: nn.Module, new: nn.Module) -> None:
    """ValueError unless ``new`` can stand in for ``module`` with all that it carries."""
    check_forward(module)
    more = sorted({*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"})
    if not isinstance(module, nn.MultiheadAttention) and more:
        raise ValueError(f"it has {more[0]!r}, expected weight and bias alone")
    if clashes := [name for name in _attributes(module) if hasattr(new, name)]:
        raise ValueError(f"it has an attribute {clashes[0]!r}, expected none that an adapted module needs for itself")


def hand_on(module: nn.Module, new: nn.Module) -> None:
    """Gives ``new`` the hooks and the attributes of ``module``, and a record of it.

    Both share the hooks, so that handles remove them from either.
    """
    vars(new).update(_attributes(module))
    _share_hooks(module, new)
    vars(new)[_RECORD] = _Original(module, new)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Those that others have set."""
    own = _OWN.get(_base(module), _CONV1D_OWN)
    return {name: value for name, value in vars(module).items() if name not in {*own, _BEFORE}}


def record(module: nn.Module) -> "_Original | None":
    """Of what ``module`` stands in for."""
    return vars(module).get(_RECORD)


def note(module: nn.Module, kind: str, former: dict[str, Any]) -> None:
    """Keeps what attributes of a module ("settings") were, and which parameters learned ("learns"), before the first
    change; `notes` gives it back."""
    if former:
        noted = vars(module).setdefault(_BEFORE, {})
        noted[kind] = {**former, **noted.get(kind, {})}


def notes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What was noted, which is then forgotten: kind -> name -> value."""
    noted: dict[str, dict[str, Any]] = vars(module).pop(_BEFORE, {})
    return noted


def restore(model: nn.Module) -> None:
    """Gives the modules of ``model`` back what was noted of them."""
    for module in model.modules():
        for kind, values in notes(module).items():
            for attribute, value in values.items():
                if kind == "learns":
                    module.get_parameter(attribute).requires_grad_(value)
                else:
                    setattr(module, attribute, value)


def is_of_peft(module: nn.Module) -> bool:
    """Whether it is a layer of `fastmoe_lora.peft`, which is PEFT's to put in and take out."""
    return type(module).__module__ == f"{__package__}._peft_layer"


class _Original:
    """The module itself as long as others hold it, else one like it; its parameters are those of the stand-in.

    The parameters are not held here, so that those of a sharded model do not stay in memory whole. Those that the
    stand-in has in another form (``other_form``, names) its ``original_parameter`` gives back.
    """

    def __init__(self, module: nn.Module, new: nn.Module):
        names = {id(parameter): name for name, parameter in new.named_parameters()}
        shared = ((name, names.get(id(parameter))) for name, parameter in module.named_parameters())
        self.shared = {name: theirs for name, theirs in shared if theirs is not None}
        self.other = tuple(name for name in getattr(new, "other_form", ()) if module._parameters[name] is not None)
        self.bare = _without(module, set(names) | {id(module._parameters[name]) for name in self.other})
        self.module = weakref.ref(module)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "module": _gone}

    def given_back(self, new: nn.Module) -> nn.Module:
        """The module, with what ``new``, its stand-in, has by now: parameters, mode, hooks."""
        module = self.module()
        module = self.bare if module is None else module
        for name, theirs in self.shared.items():
            owner, _, attribute = name.rpartition(".")
            module.get_submodule(owner)._parameters[attribute] = new.get_parameter(theirs)
        for name in self.other:
            mine, parameter = module._parameters[name], new.original_parameter(name)  # type: ignore[operator] # a method
            if mine is None:
                module._parameters[name] = parameter
            else:  # others hold it
                mine.data = parameter.data
        for name, value in getattr(new, "given_back", dict)().items():
            if not _same(value, former := module.get_parameter(name)):
                module._parameters[name] = nn.Parameter(value, requires_grad=former.requires_grad)
        _share_hooks(new, module)
        return module.train(new.training)


def _same(value: Tensor, former: Tensor) -> bool:
    """Whether these are the same numbers in the same place."""
    alike = (value.dtype, value.device) == (former.dtype, former.device)
    return alike and (value.is_meta or torch.equal(value, former))


def _named(kind: type[nn.Module]) -> str:
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.") else kind.__name__


def conv1d_class(module: nn.Module) -> type[nn.Module] | None:
    """transformers' ``Conv1D`` if ``module`` is one; transformers is not imported for it."""
    return next((kind for kind in type(module).__mro__ if (kind.__module__, kind.__name__) in _CONV1D), None)


def _gone() -> None:
    """The reference to the module in a copy of the record: the copy of a model gets modules of its own."""


def _base(module: nn.Module) -> type[nn.Module]:
    if isinstance(module, nn.Linear):
        return nn.Linear
    return conv1d_class(module) or nn.MultiheadAttention


def _share_hooks(module: nn.Module, new: nn.Module) -> None:
    for name in _HOOKS:
        hooks = vars(new)[name] = vars(module)[name]
        for hook in hooks.values() if isinstance(hooks, dict) else ():
            if getattr(hook, "with_module", False):  # torch's wrapper of a hook that is handed its module
                hook.module = weakref.ref(new)


def _without(module: nn.Module, shared: set[int]) -> nn.Module:
    """A copy that shares all with ``module`` but the parameters of these ids, which it lacks."""
    bare = copy.copy(module)
    parameters = module._parameters.items()
    bare._parameters = {name: None if id(parameter) in shared else parameter for name, parameter in parameters}
    bare._buffers = dict(module._buffers)
    bare._modules = {name: child and _without(child, shared) for name, child in module._modules.items()}
    return bare
