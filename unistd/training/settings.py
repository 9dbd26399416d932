"""From a YAML file and `key.sub=value` overrides to a checked `Config`, and back; every error is one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from unistd.files import kind, read_text
from unistd.messages import shown
from unistd.tasks import TASKS
from unistd.training.config import Config, Section, TaskOptions, TrunkOptions
from unistd.training.data import task_specs
from unistd.training.overrides import apply_overrides
from unistd.training.yaml_text import ConfigError, dump_yaml, parse_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
MAX_BYTES = 256 * 1024  # of a config file; the longest that a run writes has three thousand
WORDING = {  # of problems that pydantic words for programmers
    "model_type": "expected keys below it",
    "dict_type": "expected keys below it",
    "bool_type": "expected true or false",
}
# keys whose value may be a mapping with keys of its own: what stands between the two, and the schema below
NESTED: dict[str, tuple[str, type[Section]]] = {"task_options": ("TASK.", TaskOptions), "trunk": ("", TrunkOptions)}


def load_config(config: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config by name (`demo` is unistd/configs/demo.yaml) or file and applies `key.sub=value` overrides.

    Values are written as in YAML: `train.epochs=3`, `tasks=[kth,enso]`, `optim.clip=null`. Of a shipped config, the
    options of tasks that `tasks` leaves out are dropped.
    Raises ConfigError: no such config, broken or ambiguous YAML, unknown key (names the nearest right one), value of a
    wrong type or out of range, an override that takes back another one.
    """
    path = find_config(config)
    tree = read_tree(path)
    shipped = list(tree.get("task_options", {})) if path.resolve().parent == CONFIGS.resolve() else []
    written = apply_overrides(tree, overrides)
    for task in shipped:
        key, tasks = f"task_options.{task}", tree.get("tasks", list(TASKS))
        theirs = any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in written)
        if not theirs and isinstance(tasks, list) and task not in tasks:
            del tree["task_options"][task]
    checked = check_config(tree, source=str(path))
    try:
        task_specs(checked)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return checked


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
    found = "not a file" if (what := kind(config)) == "nothing" else f"{what}, not a file"
    raise ConfigError(f"no config {shown(str(config), 400)}: {found}, and not one of {', '.join(sorted(shipped))}")


def read_tree(path: Path) -> dict[str, Any]:
    """The mapping that a config file holds, unchecked; raises ConfigError, OSError where the file cannot be read."""
    try:
        text = read_text(path, MAX_BYTES)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        tree = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else shown(tree)
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found {found}")
    return tree


def dump_config(config: Config) -> str:
    """YAML text of all keys, readable by `load_config`."""
    return dump_yaml(config.model_dump())


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
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_type_name, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_args(annotation):
        inside = ", ".join(map(_type_name, get_args(annotation)))
        return f"{annotation.__origin__.__name__}[{inside}]"
    return "null" if annotation is type(None) else annotation.__name__


def _one_line(error: ValidationError) -> str:
    """The first problem as 'key: what is wrong', with the nearest right key where a key is unknown."""
    problem, *others = _same_place(error.errors(include_url=False))
    location = [f"{part!s:.40}" for part in problem["loc"]]
    key = f"key {'.'.join(location)!r}"
    if problem["type"] == "extra_forbidden":
        return f"unknown {key}; {_nearest_key(location)}"
    if problem["type"] == "value_error":  # our own, which says all
        text = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {text}" if location else text
    wrong = " or ".join(WORDING.get(one["type"], one["msg"].lower()) for one in (problem, *others))
    return f"{key}: {wrong}, found {shown(problem['input'])}"


def _same_place(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first problem; of a union, the only one of which is model.trunk, what each branch says at the deepest key."""
    if problems[0]["loc"][:2] != ("model", "trunk"):
        return problems[:1]
    here = [problem for problem in problems if problem["loc"][:2] == ("model", "trunk")]
    here = [
        {**problem, "loc": problem["loc"][:2] + problem["loc"][3:]} for problem in here
    ]  # without the branch's name
    deepest = max(here, key=lambda problem: len(problem["loc"]))
    return [problem for problem in here if problem["loc"] == deepest["loc"]]


def _nearest_key(location: list[str]) -> str:
    """The key that was meant by the unknown one at `location`, or those that are known there."""
    *parents, wrong = location
    here = [key for key, *_ in describe_keys()]
    siblings = sorted({_child_of(key, parents) for key in here} - {None})
    everywhere = [key for key in here if key.split(".")[-1] == wrong]
    nearest = difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.5)
    right = everywhere[0] if everywhere else ".".join([*parents, nearest[0]]) if nearest else None
    return f"did you mean {right!r}?" if right else f"known here: {', '.join(siblings)}"


def _child_of(key: str, parents: list[str]) -> str | None:
    """The part of `key` right below `parents` (TASK stands for any task), or None where key is not below them."""
    parts = key.split(".")
    below = len(parts) > len(parents) and all(a in (b, "TASK") for a, b in zip(parts, parents, strict=False))
    return parts[len(parents)] if below else None
