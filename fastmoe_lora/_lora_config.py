"""`adapter_config.json` of a LoRA checkpoint: which modules it is for, and the rank and scaling of each."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _checks, _files

_NEEDED = ("peft_type", "r", "lora_alpha", "target_modules")
_READ: tuple[str, ...] = (*_NEEDED, "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights")
_READ += ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
_LONGEST_PATTERN = 1000  # characters
# What says nothing about the output: where it came from, how it was trained, options of options that are refused.
_OF_TRAINING = {"auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"}
_OF_TRAINING |= {"fan_in_fan_out", "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core"}
_OF_TRAINING |= {"peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base weight too


@dataclass(frozen=True)
class LoraConfig:
    """The part of a checked config that decides what its tensors mean."""

    values: Mapping[str, Any]

    def targets(self, name: str) -> bool:
        """Whether the module of this name has adapters, as PEFT decides it."""
        values = self.values
        if _among(values["exclude_modules"], name):
            return False
        if any(re.match(rf"(^|.*\.)({saved})($|\..*)", name) for saved in values["modules_to_save"]):
            return False
        wanted = values["target_modules"]
        if isinstance(wanted, str) or name in wanted or not _among(wanted, name):
            return _among(wanted, name)
        layers = values["layers_to_transform"]
        found = (re.match(rf"(?:^|.*?\.)(?:{pattern})\.(\d+)\.", name) for pattern in values["layers_pattern"])
        index = next(filter(None, found), None)
        return not layers or (index is not None and int(index[1]) in layers)

    def rank(self, name: str) -> int:
        rank: int = self._of_pattern("rank_pattern", "r", name)
        return rank

    def scaling(self, name: str) -> float:
        """The factor on ``B A x``."""
        rank = self.rank(name)
        alpha: float = self._of_pattern("alpha_pattern", "lora_alpha", name)
        return alpha / (math.sqrt(rank) if self.values["use_rslora"] else rank)

    def _of_pattern(self, patterns: str, default: str, name: str) -> Any:
        """As PEFT: the first key that is the end of the name, a regular expression, decides."""
        found = (value for key, value in self.values[patterns].items() if re.match(rf"(.*\.)?({key})$", name))
        return next(found, self.values[default])


def read(file: Path) -> LoraConfig:
    """Raises OSError, or ValueError naming the file and the entry unless it describes ordinary LoRA."""
    where, content = _checks.path(file), _files.read_json(file, "the config of a LoRA checkpoint")
    if not isinstance(content, dict):
        raise ValueError(f"{where}: got {_checks.shown(content)}, expected an object")
    for key in _NEEDED:
        if key not in content:
            raise ValueError(f"{where}: {key!r} is missing")
    if content["peft_type"] != "LORA":
        raise ValueError(f"{where}: peft_type is {_checks.shown(content['peft_type'])}, expected 'LORA'")
    for key, value in content.items():
        if value and key not in _OF_TRAINING and key not in _READ:
            shown = f"{_checks.shown(key)} is {_checks.shown(value)}"
            raise ValueError(f"{where}: {shown}, expected none: ordinary LoRA has no such option")
    values = {key: content.get(key) for key in _READ}
    for key, default in (("rank_pattern", {}), ("alpha_pattern", {}), ("use_rslora", False), ("bias", "none")):
        values[key] = default if values[key] is None else values[key]
    for key in ("exclude_modules", "modules_to_save"):
        values[key] = values[key] or []
    # An int of layers and a name of their list are lists of one; without names, any name will do.
    layers, patterns = values["layers_to_transform"], values["layers_pattern"]
    values["layers_to_transform"] = [layers] if type(layers) is int else layers or []
    values["layers_pattern"] = [patterns] if isinstance(patterns, str) and patterns else patterns or [r"[^.]*"]
    for key, value in values.items():
        if fault := _fault(key, value):
            raise ValueError(f"{where}: {key} is {_checks.shown(value)}, expected {fault}")
    return LoraConfig(values)


def _fault(key: str, value: Any) -> str | None:
    """What is expected in the place of a value; None if it is right."""
    if key == "r":
        return None if _is_rank(value) else "a whole number, at least 1"
    if key == "lora_alpha":
        return None if _is_finite(value) else "a finite number"
    if key in ("rank_pattern", "alpha_pattern"):
        right, expected = (_is_rank, "ranks") if key == "rank_pattern" else (_is_finite, "finite numbers")
        fits = isinstance(value, dict) and all(map(right, value.values())) and all(map(_is_pattern, value))
        return None if fits else f"an object of patterns of names and {expected}"
    if key == "use_rslora":
        return None if isinstance(value, bool) else "true or false"
    if key == "bias":
        return None if value == "none" else "'none': biases that were trained are no experts"
    if key == "init_lora_weights":
        plain = any(value is start or (isinstance(value, str) and value == start) for start in _PLAIN_STARTS)
        return None if plain else "a start that leaves the base weight alone: PEFT converts such checkpoints to plain"
    if key in ("target_modules", "exclude_modules") and isinstance(value, str):
        return None if _is_pattern(value) else "a regular expression"
    if key == "layers_to_transform":
        return None if isinstance(value, list) and all(type(one) is int for one in value) else "numbers of layers"
    if key != "peft_type" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return "a list of names"
    if key in ("layers_pattern", "modules_to_save") and not all(map(_is_pattern, value)):
        return "a list of regular expressions"
    return None


def _among(names: str | list[str], name: str) -> bool:
    """By a regular expression for all of the name, or a list of names or ends of names."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in names)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e30


def _is_pattern(value: Any) -> bool:
    """Whether it is a regular expression, and one that is soon through with any name."""
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    if len(value) > _LONGEST_PATTERN and any(sign in value for sign in "*+?{"):
        return False
    inside = re.sub(r"\\.|\[\^?\]?[^]]*\]", "x", value, flags=re.DOTALL)
    return not _has_repeats_of_choices(inside)


def _has_repeats_of_choices(pattern: str) -> bool:
    """Whether a group that holds a repeat or a choice is repeated, which may take time exponential in the name."""
    choices = [False]
    for at, sign in enumerate(pattern):
        if sign == "(":
            choices.append(False)
        elif sign == ")":
            inner = choices.pop()
            if inner and pattern[at + 1 : at + 2] in ("*", "+", "{"):
                return True
            choices[-1] |= inner
        elif sign in "*+{|":
            choices[-1] = True
    return False
