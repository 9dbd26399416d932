"""RA-MoE as a method of PEFT: importing this module registers it, so that `RAMoEConfig` works wherever a config of
PEFT's does. It is imported when it is asked for, since nothing else here needs PEFT."""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, PeftType, register_peft_method
from torch import Tensor, nn

from . import _carried, _checks
from ._carried import conv1d_class
from ._peft_layer import ADAPTERS, RAMoELayer
from .adapt import call_settings
from .conv1d import RAMoEConv1D
from .layer import RAMoELinear

_NAME, _PREFIX = "RAMOE", "ramoe_"
_OPTIONS: tuple[str, ...] = ("num_experts", "max_rank", "init_rank", "splits", "router", "top_k", "scaling")
_OPTIONS += ("interpolation", "dropout", "backend")

if not hasattr(BaseTuner, "_remove_adapter_name_from_key"):
    raise ImportError(
        "fastmoe_lora.peft: got an older PEFT, expected 0.21 or newer, which lets methods name their keys"
    )


def _extend_peft_types() -> None:
    """PEFT registers methods of its enumeration's names alone."""
    member = str.__new__(PeftType, _NAME)
    member._name_ = member._value_ = _NAME
    vars(member).update(__objclass__=PeftType, _sort_order_=len(PeftType))
    type.__setattr__(PeftType, _NAME, member)
    PeftType._member_names_.append(_NAME)
    PeftType._member_map_[_NAME] = PeftType._value2member_map_[_NAME] = member


if _NAME not in PeftType.__members__:
    _extend_peft_types()


@dataclass
class RAMoEConfig(PeftConfig):
    """For `peft.get_peft_model`: RA-MoE with the options of `RAMoELinear`, whose names and meanings are the same.

    ``options_pattern`` maps the ends of module names (regular expressions, as in PEFT's ``rank_pattern``) to options of
    their own: ``{"qkv": {"splits": 3}}``; the first that matches counts. The rest is as in ``peft.LoraConfig``. Raises
    ValueError or TypeError naming the option that is wrong.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of modules."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Those to leave alone."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layers, by index."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of their list."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained as a whole."})
    num_experts: int = field(default=6, metadata={"help": "Low-rank experts per split."})
    max_rank: int = field(default=8, metadata={"help": "Largest rank of an expert."})
    init_rank: float = field(default=4.5, metadata={"help": "Where the continuous ranks start."})
    splits: int = field(default=1, metadata={"help": "Parts of the output with experts of their own."})
    router: str = field(default="token", metadata={"help": "'token' or 'sample'."})
    top_k: int | None = field(default=None, metadata={"help": "Gates to keep, renormalised."})
    scaling: float = field(default=1.0, metadata={"help": "Factor on the experts' sum."})
    interpolation: str = field(default="linear", metadata={"help": "See fastmoe_lora.rank_diagonal."})
    dropout: float = field(default=0.0, metadata={"help": "Rate on the adapters' input, in training."})
    backend: str = field(default="auto", metadata={"help": "'auto' or a name of fastmoe_lora.backends()."})
    options_pattern: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"help": "Options of some modules."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call] # of PEFT
        self.peft_type = PeftType[_NAME]
        for name in ("target_modules", "exclude_modules"):
            if isinstance(names := getattr(self, name), list):
                setattr(self, name, set(names))
        if self.layers_pattern and not self.layers_to_transform:
            raise ValueError("layers_pattern: got one without layers_to_transform, expected both")
        patterns = _checks.instance("options_pattern", self.options_pattern, dict, "patterns of names and options")
        everywhere = {option: getattr(self, option) for option in _OPTIONS}
        self._check(everywhere)
        for pattern, options in patterns.items():
            where = f"options_pattern: {pattern!r}"
            _checks.instance(where, options, dict, "options of a layer")
            for name in options:
                _checks.one_of(where, name, _OPTIONS)
            try:
                re.compile(pattern)
                self._check({**everywhere, **options})
            except (TypeError, ValueError, re.error) as error:
                raise ValueError(f"{where}: {error}") from None

    def options_of(self, name: str) -> dict[str, Any]:
        """Those of `RAMoELinear` for the module of this name."""
        options = {option: getattr(self, option) for option in _OPTIONS}
        found = (more for key, more in self.options_pattern.items() if re.match(rf"(.*\.)?({key})$", name))
        return {**options, **next(found, {})}

    @staticmethod
    def _check(options: dict[str, Any]) -> None:
        if options["router"] is None:
            raise ValueError("router: got None, expected 'token' or 'sample': PEFT's models hand in no gates")
        splits = options["splits"]
        RAMoELinear(1, splits if type(splits) is int and 0 < splits < 2**16 else 1, device="meta", **options)

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Options in a file that this release does not know: PEFT would ignore them."""
        known = {one.name for one in fields(cls)}
        for name, value in kwargs.items():
            if value and name not in known:
                raise ValueError(f"adapter_config.json: {_checks.shown(name)} is unknown, expected one of {_OPTIONS}")
        checked: dict[str, Any] = super().check_kwargs(**kwargs)  # type: ignore[no-untyped-call] # of PEFT
        return checked


class RAMoEModel(BaseTuner):
    """The model with RA-MoE layers, as `peft.get_peft_model` makes it."""

    prefix = _PREFIX
    tuner_layer_cls = RAMoELayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment] # as PEFT's LoRA

    # The configuration of a tuner's own kind is what PEFT hands to it, whatever its base class says.
    def _prepare_model(self, peft_config: RAMoEConfig, model: nn.Module) -> None:  # type: ignore[override]
        """Refuses, before anything is replaced, what would go wrong or be passed by later."""
        _maybe_include_all_linear_layers(peft_config, model)
        names: dict[nn.Module, str] = {}
        closed: tuple[str, ...] = ()
        for name, module in model.named_modules(remove_duplicate=False):
            if name.startswith(closed) and closed:
                continue
            if isinstance(module, (RAMoELayer, RAMoELinear)):
                closed = (*closed, f"{name}.")
            if not name or not self._check_target_module_exists(peft_config, name):
                continue
            first = names.setdefault(module, name)
            if first != name:
                expected = "one name, under which alone PEFT would adapt it"
                raise ValueError(f"target_modules: {name!r} is {first!r} by another name, expected {expected}")
        for module, name in names.items():
            self._check_target(peft_config, model, name, module)
        for module, values in call_settings(model, names.values()).items():
            _carried.note(module, "settings", {attribute: getattr(module, attribute) for attribute in values})
            for attribute, value in values.items():
                setattr(module, attribute, value)

    def _check_target(self, peft_config: RAMoEConfig, model: nn.Module, name: str, module: nn.Module) -> None:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            around = ".".join(parts[:depth])
            if isinstance(model.get_submodule(around), nn.MultiheadAttention):
                expected = "layers that are called: fastmoe_lora.adapt takes it as a whole"
                raise ValueError(f"target_modules: {name!r} is a part of nn.MultiheadAttention, expected {expected}")
        base: Any = module.get_base_layer() if isinstance(module, RAMoELayer) else module
        try:
            kind = RAMoEConv1D if conv1d_class(base) else RAMoELinear
            kind.sharing(base, **{**peft_config.options_of(name), "device": "meta"})
            if any(vars(base)[hooks] for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
                raise ValueError("linear: it has hooks, expected none: PEFT's layer in its place is the one to hook")
        except (TypeError, ValueError) as error:
            raise ValueError(f"target_modules: {name!r}: {error}") from None

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: RAMoEConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        options = peft_config.options_of(current_key)
        if isinstance(target, RAMoELayer):
            target.update_layer(adapter_name, options, peft_config.inference_mode)
            return
        layer = RAMoELayer(target)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, options, peft_config.inference_mode)
        self._replace_module(parent, target_name, layer, target)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Makes one adapter the active one; ValueError for several, whose gates would have no common sum."""
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise ValueError(f"adapter_name: got {_checks.shown(adapter_name)}, expected a single one to be active")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()  # type: ignore[no-untyped-call] # of PEFT
        for name, module in self.model.named_modules():
            active = module.active if isinstance(module, RAMoELayer) else None
            if active is not None and active.num_experts > 1:
                raise ValueError(
                    f"merge: {name!r} has {active.num_experts} experts, and gates that depend on the input, expected "
                    "one expert (fastmoe_lora.save_lora writes a fixed mixture as a LoRA, which can be merged)"
                )

    def _unload_and_optionally_merge(self, *arguments: Any, **options: Any) -> nn.Module:  # type: ignore[override]
        # PEFT's is annotated to return None, and returns the model.
        model: Any = super()._unload_and_optionally_merge(*arguments, **options)
        _carried.restore(model)
        restored: nn.Module = model
        return restored

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        before, found, after = key.rpartition(f".{ADAPTERS}.{adapter_name}.")
        return f"{before}.{ADAPTERS}.{after}" if found else super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: RAMoEConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuses a checkpoint that lacks tensors or has others, which PEFT would pass over with a warning."""
        found = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        mine = {key: value for key, value in model.state_dict().items() if f".{ADAPTERS}.{adapter_name}." in key}
        saved = {key: value for key, value in found.items() if f".{ADAPTERS}." in key}
        for key in sorted(mine.keys() ^ saved.keys()):
            verdict = "is missing in the checkpoint" if key in mine else "is not of this model"
            raise ValueError(f"{key!r} {verdict} ({len(mine.keys() ^ saved.keys())} such tensors)")
        for key, value in saved.items():
            if value.shape != mine[key].shape:
                shape = tuple(mine[key].shape)
                raise ValueError(f"{key!r} has shape {tuple(value.shape)} in the checkpoint, expected {shape}")
            finite = value.isfinite() if value.is_floating_point() else value == value
            if fault := _checks.element_fault(repr(key), value, finite, "a finite number"):
                raise ValueError(f"checkpoint: {fault}")
        return found


register_peft_method(name=_NAME.lower(), config_cls=RAMoEConfig, model_cls=RAMoEModel, prefix=_PREFIX)
