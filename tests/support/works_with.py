"""The page "what works with what", written from the marks of the tests that show it.

`@pytest.mark.shows("torch.compile", "one compilation for batches of any size")` on a test, or as the ``marks`` of a
``pytest.param``, is a line of the page. Run as a program, this writes it.
"""

import ast
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "fastmoe_lora" / "WORKS_WITH.md"
_HEAD = """# What works with what

Written by `make works-with` from the tests that show it, under the versions in [constraints.txt](../constraints.txt):
each line is what a test asserts.
"""


class Shown(NamedTuple):
    subject: str
    what: str
    name: str  # of the test
    file: str  # within tests/


def shown() -> list[Shown]:
    """All marks under tests/, each once, by subject."""
    found = {mark for file in sorted(TESTS.rglob("test_*.py")) for mark in _marks(file)}
    return sorted(found, key=lambda one: (one.subject.lower(), one))


def page() -> str:
    sections = [
        "\n".join([f"## {subject}\n", *(f"- {one.what} ([{one.name}](../tests/{one.file}))" for one in marks)])
        for subject, marks in groupby(shown(), lambda one: one.subject)
    ]
    return "\n\n".join([_HEAD.strip(), *sections]) + "\n"


def _marks(file: Path) -> Iterator[Shown]:
    for function in ast.parse(file.read_text("utf-8")).body:
        if not (isinstance(function, ast.FunctionDef) and function.name.startswith("test_")):
            continue
        for node in (part for decorator in function.decorator_list for part in ast.walk(decorator)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.shows":
                try:
                    subject, what = (ast.literal_eval(argument) for argument in node.args)
                except ValueError:
                    raise ValueError(f"{file}:{node.lineno}: expected shows(subject, what), two strings") from None
                yield Shown(subject, what, function.name, file.relative_to(TESTS).as_posix())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
