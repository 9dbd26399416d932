"""Reader of Human3.6M as OpenSTL lays it out: frames as pictures, and lists of clips.

    <root>/human/images/S5_Sitting.58860488_003736.jpg
    <root>/human/train.txt, test.txt, val.txt    lines `images/S5_Sitting.58860488_,3736,3806`: prefix, first and last

A clip is every fifth frame from the first on, one sample. Frames of any size are scaled to cover the spec's. Without
val.txt the last twentieth of the train clips serves val.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from unistd.files import read_text
from unistd.tasks.files import DataFileError, in_words, list_folder, open_file
from unistd.tasks.readers.clips import Clip, ClipDataset, content_id, cut, file_id
from unistd.tasks.readers.fit import cover
from unistd.tasks.readers.frames import read_pixels
from unistd.tasks.readers.splits import TreeReader, held_out
from unistd.tasks.readers.tree import Tree, has
from unistd.tasks.spec import TaskSpec
from unistd.tasks.task import SPLITS

_STEP = 5  # frames at 50 a second
_LISTS = re.compile(r"^(train|val|test)\.txt$")
_LINE = re.compile(r"([^,\0]{1,200}),([0-9]{1,6}),([0-9]{1,6})")
_EXPECTED = "images/*.jpg with train.txt and test.txt"


@dataclass(frozen=True)
class _Listed:
    """A line of a list: the frames `first`, `first` + 5, ... up to `last`, in files `<prefix>NNNNNN.jpg`."""

    prefix: str
    first: int
    last: int
    place: str

    def frames(self, most: int) -> list[int]:
        return list(range(self.first, self.last + 1, _STEP))[:most]

    def paths(self, top: Path, most: int) -> list[Path]:
        return [top / f"{self.prefix}{frame:06d}.jpg" for frame in self.frames(most)]


def _dataset(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    lists = {name: _read_list(top / f"{name}.txt") for name in SPLITS if name != "val" or (top / "val.txt").exists()}
    contents = _Contents(top, [line for lines in lists.values() for line in lines])
    if "val" in lists:
        lines = lists[split]
    else:
        lines = lists["test"] if split == "test" else held_out(split, lists["train"], top / "train.txt")
    count = spec.frames_in + spec.frames_out
    _check_there(top, lines, count)
    clips = [_clip(line, line.paths(top, count), contents) for line in lines]
    windows = cut(clips, count, lambda room: [0])
    if not len(windows):
        raise DataFileError(
            f"{lines[0].place}: frames {lines[0].first} to {lines[0].last}, expected {count} frames, {_STEP} apart"
        )
    short = len(lines) - len(windows)
    notes = (f"{short} of {len(lines)} clips left out: shorter than {count} frames, {_STEP} apart",) if short else ()
    return ClipDataset(spec, clips, windows, str(top), cover, notes)


def _clip(line: _Listed, paths: list[Path], contents: _Contents) -> Clip:
    name = f"{line.place} ({paths[0].name} and on)" if paths else line.place
    return Clip(name, len(paths), partial(read_pixels, paths, 3), partial(_frame_ids, line, len(paths), contents))


def _frame_ids(line: _Listed, count: int, contents: _Contents) -> np.ndarray:
    """Frames of one recording less than a tenth of a second apart are taken for the same."""
    return contents[line.prefix] + np.array(line.frames(count)) // _STEP


class _Contents:
    """Prefix -> what stands for its recording, from three frames of its earliest clip: a copy has the same."""

    def __init__(self, top: Path, lines: list[_Listed]) -> None:
        self._top, self._known = top, {}
        self._earliest: dict[str, _Listed] = {}
        for line in lines:
            held = self._earliest.setdefault(line.prefix, line)
            if (line.first, line.last) < (held.first, held.last):
                self._earliest[line.prefix] = line

    def __getitem__(self, prefix: str) -> int:
        if prefix not in self._known:
            paths = self._earliest[prefix].paths(self._top, 8)
            parts = [file_id(paths[number]).to_bytes(8, "little") for number in (0, len(paths) // 2, -1)]
            self._known[prefix] = content_id(*parts) >> 20 << 20
        return self._known[prefix]


def _read_list(path: Path) -> list[_Listed]:
    open_file(path).close()
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataFileError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        within = match is not None and not match[1].startswith("/") and ".." not in match[1].split("/")
        if not within or int(match[3]) < int(match[2]):
            raise DataFileError(
                f"{path}: line {number} is {in_words(line)}, expected prefix,first,last like "
                "images/S5_Sitting.58860488_,3736,3806"
            )
        lines.append(_Listed(match[1], int(match[2]), int(match[3]), f"{path}: line {number}"))
    if not lines:
        raise DataFileError(f"{path}: no clips, expected lines like images/S5_Sitting.58860488_,3736,3806")
    return lines


def _check_there(top: Path, lines: list[_Listed], count: int) -> None:
    """Raises DataFileError naming the first frame of these clips that is not there."""
    folders: dict[Path, set[str]] = {}
    missing: dict[str, list[Path]] = defaultdict(list)
    for line in lines:
        for path in line.paths(top, count):
            if path.parent not in folders:
                folders[path.parent] = set(list_folder(path.parent))
            if path.name not in folders[path.parent]:
                missing[line.place].append(path)
    if missing:
        place, paths = next(iter(missing.items()))
        total = sum(map(len, missing.values()))
        raise DataFileError(f"{paths[0]}: no such file, of {Path(place).name}; {total} frames of the list are missing")


def _has_lists(top: Path) -> bool:
    return has(top, _LISTS)


READER = TreeReader(
    Tree("human36m", ("human36m", "human", "human3.6m"), _has_lists, _EXPECTED, distinct=False), _dataset
)
