"""YAML as configs are written in it: plain values with one meaning, of bounded size; and back to text.

Numbers, booleans and null are those of YAML 1.2 (1e-3 is a number). What YAML 1.1 reads as something else than a word
and 1.2 does not (yes, off, 010, 1:30, 1_000, 2026-11-22) is refused unless it is quoted, as are ~ (null to YAML, the
home folder to whoever writes a path), tags, keys that are no
words, a key given twice, and a key with nothing after it (none is written null).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from unistd.files import read_text
from unistd.messages import cut, shown

MAX_VALUES = 10_000  # in a document, aliases counted as often as they are used; the longest config has a hundred
MAX_BYTES = 256 * 1024  # of a config file; the longest that a run writes has a few thousand
_TOO_MANY = f"found more than {MAX_VALUES:,} values, aliases spelt out"
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_AMBIGUOUS = "ambiguous"
_PLAIN = {
    "null": re.compile(r"null|Null|NULL"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}


class ConfigError(ValueError):
    """A wrong key, value or config file. One line: where, what was found, what is expected."""


class _OneMeaning:
    """Resolves what is not quoted: by YAML 1.2, and where 1.1 takes it for no word either, as ambiguous."""

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        if kind is not yaml.ScalarNode or not implicit[0] or tag == _MERGE:
            return tag
        plain = next((name for name, pattern in _PLAIN.items() if pattern.fullmatch(value)), None)
        if plain is not None:
            return f"{_TAG}{plain}"
        return tag if tag == f"{_TAG}str" or not value else _AMBIGUOUS


class _Dumper(_OneMeaning, yaml.SafeDumper):
    """Quotes every word that `_Loader` would not read back as one."""


class _Loader(_OneMeaning, yaml.SafeLoader):
    """Composes at most MAX_VALUES nodes, none of which has a tag."""

    count = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"{_line(event)}found the tag {shown(event.tag)}, expected a plain value")
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(f"{_line(event)}{_TOO_MANY}")
        return super().compose_node(parent, index)


def parse_yaml(text: str, comments: bool = True) -> Any:
    """The plain value (dict with str keys, list, str, int, float, bool, None) of one document; None where it is empty.

    Args:
        comments: whether `text` may have one after its value.

    Raises:
        ConfigError: see the module.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not comments and (node is None or node.end_mark.index < len(text.rstrip())):
            raise ConfigError(f"found a comment in {shown(text)}, expected quotes around a # that is meant")
        return None if node is None else _Values(loader).of(node, "")
    except yaml.reader.ReaderError as error:
        character, position = chr(error.character), error.position
        raise ConfigError(f"not YAML: found the character {character!r} at position {position}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"not YAML: line {error.problem_mark.line + 1}: {cut(error.problem, 200)}") from None
    except RecursionError:
        raise ConfigError("nested too deeply for a config") from None
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:  # an escape or a version that is a number beyond all
        raise ConfigError(f"not YAML: {cut(str(error), 200)}") from None


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


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Text in ASCII that `parse_yaml` reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120)


class _Values:
    """Plain values of composed nodes."""

    def __init__(self, loader: _Loader) -> None:
        self.loader, self.count = loader, 0

    def of(self, node: yaml.Node, key: str) -> Any:
        """The value of a node; `key` is where it stands, as a.b.c."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(f"{_place(node, key)}{_TOO_MANY}")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(child, f"{key}.{index}".lstrip(".")) for index, child in enumerate(node.value)]
        if not node.value and node.tag == f"{_TAG}null":
            raise ConfigError(f"{_place(node, key)}found nothing, expected a value (null for none)")
        if node.tag in (_AMBIGUOUS, _MERGE):
            raise ConfigError(
                f"{_place(node, key)}found {node.value:.40}, which not every YAML reads alike:"
                " expected a decimal number, true, false, null, or quotes around a word"
            )
        try:
            return self.loader.construct_object(node)
        except ValueError:  # Python reads no numbers of thousands of digits
            raise ConfigError(f"{_place(node, key)}found {shown(node.value)}, expected a shorter number") from None

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for name, child in node.value:
            if name.tag == _MERGE:
                merged = self._merge(child, key) | merged
                continue
            if name.tag != f"{_TAG}str" or not name.value:
                found = shown(name.value) if isinstance(name, yaml.ScalarNode) else "a list or mapping"
                raise ConfigError(f"{_place(name, key)}found {found} as a key, expected a word")
            below = f"{key}.{name.value:.40}".lstrip(".")
            if name.value in own:
                raise ConfigError(f"{_place(name, below)}given twice in one mapping, expected once")
            own[name.value] = self.of(child, below)
        return merged | own

    def _merge(self, node: yaml.Node, key: str) -> dict[str, Any]:
        """The keys that `<<` brings: of one mapping, or of several, the first of which counts."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                raise ConfigError(f"{_place(part, key)}found no mapping after <<, expected one")
            merged = self.of(part, key) | merged
        return merged


def _line(place: Any) -> str:
    return f"line {place.start_mark.line + 1}: "


def _place(node: yaml.Node, key: str) -> str:
    return _line(node) + (f"key {shown(key)}: " if key else "")
