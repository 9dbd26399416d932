"""What somebody writes in YAML as checked values: sections of keys, paths, and the one line that says what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from unistd.messages import shown

_WORDING = {  # of problems that pydantic words for programmers
    "model_type": "expected keys below it",
    "dict_type": "expected keys below it",
    "bool_type": "expected true or false",
}
_ANY = "TASK"  # stands in a key for the name of a task


class Section(BaseModel):
    """Keys are checked: an unknown one is an error, never ignored; a config does not change once it is made.

    Types are strict: true is no number, 3.0 no whole number, "3" neither; a whole number serves where any number does.
    No number is NaN or infinite. The upper bounds lie far beyond what a run can use, so that a slip of the digits is
    told at once; whether a model and its batches fit into memory is checked before they are made (`memory.py`).
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _path(text: str) -> str:
    """The text of a path, with the home folder for ~."""
    if not text.strip() or text != text.strip():
        raise ValueError(f"expected a path without blanks around it, found {shown(text)}")
    if "\0" in text or len(text) > 1000:
        raise ValueError(f"expected a path of at most 1000 characters and no NUL, found {shown(text)}")
    try:
        text.encode()
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except UnicodeEncodeError:
        raise ValueError(f"expected a path that is text, found {shown(text)}") from None
    except RuntimeError:
        raise ValueError(f"found no home folder for {shown(text)}") from None


PathText = Annotated[str, AfterValidator(_path)]
AnySection = TypeVar("AnySection", bound=Section)


def checked(section: type[AnySection], tree: Mapping[str, Any]) -> AnySection:
    """A tree of plain values as a section; raises ValueError, one line, with the first key that is wrong."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ValueError(_one_line(error, section)) from None


def describe_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yields (key, type, default, meaning) of every key, in the order of the schema."""
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from describe_keys(field.annotation, f"{prefix}{name}.")
            continue
        default = "required"
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            default = yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
        yield f"{prefix}{name}", _type_name(field.annotation), default, " ".join((field.description or "").split())
        for place, nested in _nested(field.annotation):
            yield from describe_keys(nested, f"{prefix}{name}.{place}")


def _nested(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Sections within a type, and what stands in a key between the two: the task's name, or nothing in a union."""
    if get_origin(annotation) is dict and _is_section(get_args(annotation)[1]):
        yield f"{_ANY}.", get_args(annotation)[1]
    elif get_origin(annotation) in (Union, UnionType):
        yield from (("", kind) for kind in get_args(annotation) if _is_section(kind))


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


def _one_line(error: ValidationError, section: type[BaseModel]) -> str:
    """The first problem as 'key: what is wrong', with the nearest right key where a key is unknown."""
    problem, *others = _same_place(error.errors(include_url=False), section)
    location = [f"{part!s:.40}" for part in problem["loc"]]
    key = f"key {'.'.join(location)!r}"
    if problem["type"] == "extra_forbidden":
        return f"unknown {key}; {_nearest_key(location, section)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":  # our own, which says all
        text = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {text}" if location else text
    wrong = " or ".join(dict.fromkeys(_WORDING.get(one["type"], one["msg"].lower()) for one in (problem, *others)))
    return f"{key}: {wrong}, found {shown(problem['input'])}"


def _same_place(problems: list[dict[str, Any]], section: type[BaseModel]) -> list[dict[str, Any]]:
    """The first problem; of a union with a section in it, what each branch says at the deepest key."""
    place = _union_place(problems[0]["loc"], section)
    if place is None:
        return problems[:1]
    here = [problem for problem in problems if problem["loc"][: len(place)] == place]
    here = [  # without the branch's name
        {**problem, "loc": place + problem["loc"][len(place) + 1 :]} for problem in here
    ]
    deepest = max(here, key=lambda problem: len(problem["loc"]))
    return [problem for problem in here if problem["loc"] == deepest["loc"]]


def _union_place(location: tuple[Any, ...], section: type[BaseModel]) -> tuple[Any, ...] | None:
    """The beginning of a location that is a key whose value is of one of several types."""
    annotation: Any = section
    for depth, part in enumerate(location):
        if _is_section(annotation):
            field = annotation.model_fields.get(part)
            annotation = None if field is None else field.annotation
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        if get_origin(annotation) in (Union, UnionType) and depth + 1 < len(location):
            kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
            return location[: depth + 1] if len(kinds) > 1 else None
    return None


def _nearest_key(location: list[str], section: type[BaseModel]) -> str:
    """The key that was meant by the unknown one at `location`, or those that are known there."""
    *parents, wrong = location
    here = [key for key, *_ in describe_keys(section)]
    siblings = sorted({_child_of(key, parents) for key in here} - {None})
    everywhere = [key for key in here if key.split(".")[-1] == wrong]
    nearest = difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.5)
    right = everywhere[0] if everywhere else ".".join([*parents, nearest[0]]) if nearest else None
    return f"did you mean {right!r}?" if right else f"known here: {', '.join(siblings)}"


def _child_of(key: str, parents: list[str]) -> str | None:
    """The part of `key` right below `parents` (TASK stands for any task), or None where key is not below them."""
    parts = key.split(".")
    below = len(parts) > len(parents) and all(a in (b, _ANY) for a, b in zip(parts, parents, strict=False))
    return parts[len(parents)] if below else None
