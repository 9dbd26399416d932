"""From a YAML file and `key.sub=value` overrides to a checked `Config`, and back; every error is one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from unistd.training.config import Config, Section, TaskOptions, TrunkOptions

CONFIGS = Path(__file__).parent.parent / "configs"
# keys whose value may be a mapping with keys of its own: what stands between the two, and the schema below
NESTED: dict[str, tuple[str, type[Section]]] = {"task_options": ("TASK.", TaskOptions), "trunk": ("", TrunkOptions)}


class ConfigError(ValueError):
    """A wrong key, value or config file."""


def load_config(config: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config by name (`demo` is unistd/configs/demo.yaml) or file and applies `key.sub=value` overrides.

    Values are written as in YAML: `train.epochs=3`, `tasks=[kth,enso]`, `optim.clip=null`.
    Raises ConfigError: no such config, broken YAML, unknown key (names the nearest right one), value of a wrong type.
    """
    path = find_config(config)
    tree = _parse_yaml(path.read_text(), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return check_config(tree, source=str(path))


def check_config(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Checks a tree of plain values; raises ConfigError as `load_config` does, beginning with `source`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from None


def find_config(config: str | Path) -> Path:
    """Path of a config given by the name of a shipped one or by its file; raises ConfigError."""
    shipped = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    if str(config) in shipped:
        return shipped[str(config)]
    if Path(config).is_file():
        return Path(config)
    raise ConfigError(f"no config {str(config)!r}: not a file, and not one of {', '.join(sorted(shipped))}")


def dump_config(config: Config) -> str:
    """YAML text of all keys, readable by `load_config`."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, width=120)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys (`key.sub`) in which two dumped configs differ."""
    changed = []
    for key in dict.fromkeys([*old, *new]):
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            changed += changed_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            changed.append(f"{prefix}{key}")
    return changed


def describe_keys() -> Iterator[tuple[str, str, str, str]]:
    """Yields (key, type, default, meaning) of every key, in the order of the schema."""
    yield from _describe(Config, "")


def _describe(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from _describe(field.annotation, f"{prefix}{name}.")
            continue
        default = yaml.safe_dump(field.get_default(call_default_factory=True), default_flow_style=True, width=10**6)
        yield f"{prefix}{name}", _type_name(field.annotation), default.split("\n")[0], field.description
        if name in NESTED:
            place, nested = NESTED[name]
            yield from _describe(nested, f"{prefix}{name}.{place}")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return "null" if annotation is type(None) else annotation.__name__
    text = str(annotation)
    if text.startswith("typing.Literal"):
        return " | ".join(map(str, get_args(annotation)))
    return text.replace("typing.", "").replace("unistd.training.config.", "").replace("None", "null")


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key.sub=value")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, it has no keys below it")
    tree[last] = _parse_yaml(text, f"override {override!r}")


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def _one_line(error: ValidationError) -> str:
    """The deepest problem as 'key: what is wrong', with the nearest right key where a key is unknown."""
    problem = max(error.errors(), key=lambda problem: len(problem["loc"]))
    # a union adds the branch that failed to the location: keep what is part of a key
    branches = {"int", "float", "str", *(nested.__name__ for _, nested in NESTED.values())}
    location = [str(part) for part in problem["loc"] if part not in branches]
    if problem["type"] == "extra_forbidden":
        *parents, wrong = location
        here = [key for key, *_ in describe_keys()]
        siblings = sorted({_child_of(key, parents) for key in here} - {None})
        everywhere = [key for key in here if key.split(".")[-1] == wrong]
        nearest = difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.5)
        right = everywhere[0] if everywhere else ".".join([*parents, nearest[0]]) if nearest else None
        hint = f"did you mean {right!r}?" if right else f"known here: {', '.join(siblings)}"
        return f"unknown key {'.'.join(location)!r}; {hint}"
    if problem["type"] == "value_error":  # our own, which says all
        return problem["msg"].removeprefix("Value error, ")
    return f"key {'.'.join(location)!r}: {problem['msg'].lower()}, found {problem['input']!r}"


def _child_of(key: str, parents: list[str]) -> str | None:
    """The part of `key` right below `parents` (TASK stands for any task), or None where key is not below them."""
    parts = key.split(".")
    below = len(parts) > len(parents) and all(a in (b, "TASK") for a, b in zip(parts, parents, strict=False))
    return parts[len(parents)] if below else None
