"""Directive ``error-list``: every message that a part of the code raises, read from its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """(error, message) of each ``raise`` whose message stands there, with its variable parts as {names}."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = _text(node.exc.args[0])
            if text and not text.startswith("module {"):
                yield ast.unparse(node.exc.func), text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
        text = "".join(map(str, parts))
    else:
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text if any(letter.isalpha() for letter in text.replace("{", "")) and " " in text else ""


class ErrorList(SphinxDirective):
    """Its arguments are files and folders below the root of the repository."""

    required_arguments = 1
    optional_arguments = 99

    def run(self) -> list[nodes.Node]:
        listed: list[nodes.Node] = []
        for argument in self.arguments:
            place = ROOT / argument
            if not place.exists():
                raise self.error(f"{argument}: no such file or folder")
            for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
                self.env.note_dependency(str(path))
                found = list(dict.fromkeys(messages(path)))
                if found:
                    name = path.relative_to(ROOT).as_posix()
                    heading = nodes.paragraph("", "", nodes.strong("", name))
                    listed += [heading, nodes.bullet_list("", *(self._item(*one) for one in found))]
        return listed

    def _item(self, error: str, text: str) -> nodes.list_item:
        line = nodes.paragraph("", "", nodes.literal("", error), nodes.Text(" "), nodes.Text(text))
        return nodes.list_item("", line)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("error-list", ErrorList)
    return {"parallel_read_safe": True}
