"""Pages that lie beside the code which they describe, brought into the documentation with their pictures and links."""

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pages"
PAGES = {
    "fastmoe_lora/WORKS_WITH.md": "works_with",
    "unistd/DATA.md": "data_cards",
    "unistd/configs/data/README.md": "own_data",
    "unistd/PLAN.md": "plan",
    "bench/README.md": "comparisons",
    "bench/NOTES.md": "notes_on_speed",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
}
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!https?:)([^()\s]+)\)")


def converted(page: str) -> str:
    """Text of a page: links to other pages lead there, pictures are copied, names of other files are code."""
    home = (ROOT / page).parent

    def link(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        place, _, anchor = target.partition("#")
        if not place:
            return found[0]
        path = (home / place).resolve()
        if not path.exists():
            raise ValueError(f"{page}: {target}: no such file")
        name = path.relative_to(ROOT).as_posix()
        if picture:
            shutil.copy(path, FOLDER)
            return f"![{text}]({path.name})"
        inside = name if name in PAGES else f"{name}/README.md"
        if inside in PAGES:
            return f"[{text}]({PAGES[inside]}.md{'#' if anchor else ''}{anchor})"
        return f"`{name}`" if text.strip("`") in (name, place, path.name) else f"{text} (`{name}`)"

    return LINK.sub(link, (ROOT / page).read_text())


def write(_: Sphinx) -> None:
    FOLDER.mkdir(exist_ok=True)
    for page, name in PAGES.items():
        path, text = FOLDER / f"{name}.md", converted(page)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            os.utime(path)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
