"""`key.sub=value` on the command line: single keys of a config; of two for the same key the later one counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unistd.messages import shown
from unistd.training.yaml_text import ConfigError, parse_yaml

MAX_CHARACTERS = 10_000


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Sets the keys of a config's tree in the order of `overrides`; returns these keys.

    Raises:
        ConfigError: the first that is no key.sub=value, whose value is no YAML on one line, which has a value where its
            key needs a section, which is a whole section of which an earlier one has set a key, or a mapping (but {})
            without a key that the config has there.
    """
    written: dict[str, str] = {}  # key -> the override that set it
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
    if isinstance(before, dict) and isinstance(value, dict) and value:
        dropped = next((key for key in before if key not in value), None)
        if dropped is not None:
            example = ".".join([*parts, next(iter(value))])
            raise ConfigError(f"drops {dropped!r} of the config, expected single keys, as {shown(example)}=...")
    tree[parts[-1]] = value
