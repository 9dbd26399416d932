"""`key.sub=value` on the command line: single keys of a config; of two for the same key the later one counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from unistd.messages import shown
from unistd.training.yaml_text import ConfigError, parse_yaml

MAX_CHARACTERS = 10_000


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Sets the keys of a config's tree in the order of `overrides`; returns these keys.

    Raises:
        ConfigError: the first that is no key.sub=value, whose value is no YAML on one line, which has a value where its
            key needs a section, which is a whole section of which an earlier one has set a key, or a mapping (but {})
            without a key that the config has there: a task's options may go where the task does not train.
    """
    written: dict[str, str] = {}  # key -> the override that set it
    options = dict(_section(tree, "task_options"))
    for override in overrides:
        key, equals, text = override.partition("=")
        try:
            parts = key.split(".")
            if not equals or not all(part.isidentifier() for part in parts):
                raise ConfigError("expected key.sub=value")
            below = next((other for other in written if other.startswith(f"{key}.")), None)
            if below is not None:
                raise ConfigError(f"takes back {shown(written[below])}, expected a section before its keys")
            _set(tree, parts, _value(text))
        except ConfigError as error:
            raise ConfigError(f"override {shown(override)}: {error}") from None
        written[key] = override
    _check_tasks(tree, options, written.get("task_options"))
    return list(written)


def _value(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"expected at most {MAX_CHARACTERS:,} characters")
    if not text.strip():
        raise ConfigError("found no value, expected one (null for none)")
    if len(text.splitlines()) > 1:
        raise ConfigError("expected a value on one line")
    return parse_yaml(text, comments=False)


def _set(tree: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{shown(part)} is a value, it has no keys below it")
    before = tree.get(parts[-1])
    if isinstance(before, dict) and isinstance(value, dict) and list(parts) != ["task_options"]:
        _check_drops(".".join(parts), before, value)
    tree[parts[-1]] = value


def _check_drops(key: str, before: Iterable[str], value: dict[str, Any]) -> None:
    dropped = next((name for name in before if name not in value), None)
    if value and dropped is not None:
        example = shown(f"{key}.{next(iter(value))}")
        raise ConfigError(f"drops {dropped!r} of the config, expected single keys, as {example}=...")


def _check_tasks(tree: dict[str, Any], options: dict[str, Any], override: str | None) -> None:
    """An override of all `task_options` keeps what was there for the tasks that train (no list: all of them)."""
    if override is None:
        return
    tasks, value = tree.get("tasks"), _value(override.partition("=")[2])
    needed = [task for task in options if not isinstance(tasks, list) or task in tasks]
    try:
        _check_drops("task_options", needed, value if isinstance(value, dict) else {})
    except ConfigError as error:
        raise ConfigError(f"override {shown(override)}: {error}") from None


def _section(tree: dict[str, Any], key: str) -> dict[str, Any]:
    section = tree.get(key)
    return section if isinstance(section, dict) else {}
