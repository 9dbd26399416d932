"""From a YAML file and `key.sub=value` overrides to a checked `Config`, and back; every error is one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unistd.files import kind
from unistd.messages import shown
from unistd.schema import checked
from unistd.tasks import TASKS
from unistd.training.config import Config
from unistd.training.data import task_specs
from unistd.training.overrides import apply_overrides
from unistd.training.own import describe_own_tasks
from unistd.training.yaml_text import ConfigError, dump_yaml, read_tree

CONFIGS = Path(__file__).parent.parent / "configs"


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config by name (`demo` is unistd/configs/demo.yaml) or file and applies `key.sub=value` overrides.

    Values are written as in YAML: `train.epochs=3`, `tasks=[kth,enso]`, `optim.clip=null`. Of a shipped config, the
    options of tasks that `tasks` leaves out are dropped.
    Raises ConfigError: no such config, broken or ambiguous YAML, unknown key (names the nearest right one), value of a
    wrong type or out of range, an override that takes back another one.
    """
    path = find_config(name)
    tree = read_tree(path)
    shipped = list(tree.get("task_options", {})) if path.resolve().parent == CONFIGS.resolve() else []
    written = apply_overrides(tree, overrides)
    describe_own_tasks(tree, path)
    for task in shipped:
        key, tasks = f"task_options.{task}", tree.get("tasks", list(TASKS))
        theirs = any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in written)
        if not theirs and isinstance(tasks, list) and task not in tasks:
            del tree["task_options"][task]
    config = check_config(tree, source=str(path))
    try:
        task_specs(config)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def check_config(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Checks a tree of plain values; raises ConfigError as `load_config` does, beginning with `source`."""
    try:
        return checked(Config, tree)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def find_config(config: str | Path) -> Path:
    """Path of a config given by the name of a shipped one or by its file; raises ConfigError."""
    shipped = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    if str(config) in shipped:
        return shipped[str(config)]
    if Path(config).is_file():
        return Path(config)
    found = "not a file" if (what := kind(config)) == "nothing" else f"{what}, not a file"
    raise ConfigError(f"no config {shown(str(config), 400)}: {found}, and not one of {', '.join(sorted(shipped))}")


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
