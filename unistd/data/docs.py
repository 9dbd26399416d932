"""The page on the tasks' data, unistd/DATA.md: a table and a card of each task.

`python -m unistd.data.docs` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from unistd.files import write_text
from unistd.tasks import TASKS
from unistd.tasks.cards import CARDS

PAGE = Path(__file__).parents[1] / "DATA.md"
_HEAD = """# The data of the ten tasks

Written by `python -m unistd.data.docs`, from the tasks and their cards. None of these data come with the project.
`unistd data check --data-root DIR` says what of them lies below a folder and whether it is whole; `unistd data prepare`
turns slow forms into a fast one; `unistd data preview` draws them.

No window of the test split is in train: windows that share frames with another split, by their dates, numbers or
content, are left out, and the run says how many. Values are divided by a scale that the train split alone decides on
where the protocol does not fix it; the run keeps it.

| task | frames | unit; 1.0 is | forms that are read, below the root | splits | metrics | source | licence |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole text."""
    rows, cards = [], []
    for name, task in TASKS.items():
        spec, card = task.spec, CARDS[name]
        frames = f"{spec.channels} x {spec.height} x {spec.width}, {spec.frames_in} -> {spec.frames_out}"
        forms = "<br>".join(f"`{form}`" for form in card.forms)
        metrics = ", ".join(spec.metrics)
        unit = f"{spec.unit}; {spec.scale + spec.offset:g}"
        rows.append(
            f"| {name} | {frames} | {unit} | {forms} | {card.splits} | {metrics} | {card.source} | {card.licence} |\n"
        )
        lines = [f"## {spec.title}", "", card.content, ""]
        facts = {
            "How they were made": card.made,
            "What they are not for": card.limits,
            "Where they come from": card.source,
            "Licence": card.licence,
            "Before the first run": card.prepare or "nothing: the published files are read as they are",
        }
        lines += [f"- **{key}**: {value}" for key, value in facts.items()]
        cards.append("\n".join(lines) + "\n")
    return _HEAD + "".join(rows) + "\n" + "\n".join(cards)


if __name__ == "__main__":
    write_text(PAGE, page())
