"""Figures from the recorded results, and the READMEs' tables between their markers."""

import argparse
import os
from pathlib import Path

from bench.harness.machine import ROOT
from bench.harness.record import RESULTS, Record, load
from bench.harness.tables import between_markers, section

NAMES = ("layer", "backward", "memory", "model", "train", "scaling")
TABLES = ("fuse", "cpu_targets")  # tables alone, no figures
SUFFIXES = ("", "-cuda", "-zen5")  # of a record's file: this project's first machine, a GPU's, one without tile units
FILLED = ("README.md", "bench/README.md", "bench/NOTES.md")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files; figures go there too")
    parser.add_argument("--readme", type=Path, nargs="*", default=[ROOT / name for name in FILLED])
    parser.add_argument("--no-figures", action="store_true", help="tables alone")
    given = parser.parse_args(arguments)
    files = [given.results / f"{name}{suffix}.json" for suffix in SUFFIXES for name in (*NAMES, *TABLES)]
    records = {file.stem: load(file) for file in files if file.is_file()}
    if not records:
        parser.error(f"{given.results}: holds none of {', '.join(NAMES)} as .json")
    for stem, record in records.items():
        if not given.no_figures and record.comparison in NAMES:
            draw(record, given.results / stem)
    for readme in given.readme:
        fill(readme, records, given.results)


def draw(record: Record, stem: Path) -> None:
    from bench.harness import charts

    for suffix, figure in charts.figures(record).items():
        file = stem.with_name(f"{stem.name}{suffix}.png")
        charts.save(figure, file)
        print(f"wrote {file}")


def fill(readme: Path, records: dict[str, Record], results: Path) -> None:
    """Puts each record's figures and table between its markers; says which have no place in this file."""
    text, missing = readme.read_text(), []
    for name, record in records.items():
        files = [file for file in (results / f"{name}.png", results / f"{name}-memory.png") if file.is_file()]
        images = [f"![{file.stem}]({os.path.relpath(file, readme.parent)})" for file in files]
        filled = between_markers(text, name, "\n\n".join([*images, section(record)]))
        if filled is None:
            missing.append(name)
        else:
            text = filled
    readme.write_text(text)
    print(f"wrote {readme}" + (f" (no markers for {', '.join(missing)})" if missing else ""))
