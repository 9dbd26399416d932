"""Readers of KTH: frames as pictures, and the original videos, cut by the official table of sequences.

    <root>/kth/boxing/person01_boxing_d1_uncomp/image_0001.jpg
    <root>/kth/boxing/person01_boxing_d1_uncomp.avi, <root>/kth/00sequences.txt    the videos also without a folder

Persons 1 to 14 are train, 15 and 16 val, 17 to 25 test. Samples begin every 20 frames in train, 10 in val and 30 in
test, and every 3 where someone jogs or runs, as PredBench has it; none contains a missing frame, and of a video none
crosses the border of a sequence. The first channel is taken; frames are scaled to the spec's size, whatever that does
to their aspect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from unistd.files import read_text
from unistd.tasks.files import DataFileError, in_words, list_folder, open_file
from unistd.tasks.readers.clips import Clip, ClipDataset, Windows, cut, every, file_id
from unistd.tasks.readers.fit import resize
from unistd.tasks.readers.frames import picture_clip, unbroken
from unistd.tasks.readers.splits import TreeReader
from unistd.tasks.readers.tree import Tree, has
from unistd.tasks.spec import TaskSpec
from unistd.tasks.video import Video, open_videos

ACTIONS = ("boxing", "handclapping", "handwaving", "walking", "jogging", "running")
_FAST, _FAST_STRIDE = ("jogging", "running"), 3
_STRIDES = {"train": 20, "val": 10, "test": 30}
_PERSONS = {"train": range(1, 15), "val": range(15, 17), "test": range(17, 26)}
_RECORDING = rf"person(\d\d)_({'|'.join(ACTIONS)})_d([1-4])"
_FOLDER, _VIDEO = re.compile(rf"^{_RECORDING}(_uncomp)?$"), re.compile(rf"^{_RECORDING}(_uncomp)?\.avi$")
_FRAME = re.compile(r"^(?!\.)\D*(\d{1,9})\.(jpg|png)$")  # no hidden file: copies made by macOS hold one beside each
_TABLE = "00sequences.txt"
_ROW = re.compile(rf"({_RECORDING})\s+(?:frames\s+(\d+\s*-\s*\d+(?:\s*,\s*\d+\s*-\s*\d+)*)|\*missing\*)\s*")
_LONGEST = 1_000_000  # frames
_EXPECTED = f"ACTION/personNN_ACTION_dM_uncomp/image_0001.jpg, or .avi files of such names with {_TABLE}"


def _from_pictures(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    clips = []
    for folder, match in _recordings(top, _FOLDER):
        if _split_of(folder, match) == split:
            found = [(int(name[1]), folder / name[0]) for name in map(_FRAME.search, list_folder(folder)) if name]
            if not found:
                held = in_words(list_folder(folder)[:3])
                raise DataFileError(f"{folder}: no frames (but {held}), expected names like image_0001.jpg")
            clips += [(match[2], picture_clip(paths, 1)) for paths in unbroken(found)]
    return _dataset(spec, top, split, clips)


def _from_videos(spec: TaskSpec, top: Path, split: str) -> ClipDataset:
    table = _read_table(_table_of(top))
    names, chosen = set(), {}
    for path, match in _recordings(top, _VIDEO):
        name = path.name.removesuffix(".avi").removesuffix("_uncomp")
        if name not in table:
            raise DataFileError(f"{path}: not in {_TABLE}, which says how it is cut")
        names.add(name)
        if _split_of(path, match) == split:
            chosen[name] = (path, match[2])
    clips, beyond = [], 0
    for name, video in zip(chosen, open_videos([path for path, _ in chosen.values()]), strict=True):
        for first, last in table[name]:
            frames = min(last, len(video.times)) - first + 1  # the table counts from 1
            beyond += last > len(video.times)
            if frames > 0:
                read = partial(_video_rows, video, first - 1)
                clip = Clip(f"{video.path}: frames {first} to {last}", frames, read, partial(_video_id, video))
                clips.append((chosen[name][1], clip))
    notes = []
    if lacking := len(table) - len(names):
        notes.append(f"{lacking} of the {len(table)} videos of {_TABLE} are not there")
    if beyond:
        notes.append(f"{beyond} sequences of {_TABLE} end behind the last frame of their video")
    return _dataset(spec, top, split, clips, tuple(notes))


def _dataset(
    spec: TaskSpec, top: Path, split: str, clips: list[tuple[str, Clip]], notes: tuple[str, ...] = ()
) -> ClipDataset:
    """Of clips with their actions."""
    count = spec.frames_in + spec.frames_out
    parts = []
    for fast in (False, True):
        numbers = [number for number, (action, _) in enumerate(clips) if (action in _FAST) is fast]
        part = cut([clips[number][1] for number in numbers], count, every(_FAST_STRIDE if fast else _STRIDES[split]))
        parts.append(Windows(np.array(numbers, np.int64)[part.clip], part.start))
    windows = Windows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("clip", "start")))
    windows = windows.take(np.lexsort((windows.start, windows.clip)))
    if not len(windows):
        persons = _PERSONS[split]
        found = f"at most {max(clip.frames for _, clip in clips)} frames in a row" if clips else "nobody"
        raise DataFileError(
            f"{top}: found {found} of persons {persons[0]} to {persons[-1]}, the {split} split, expected {count} frames"
        )
    return ClipDataset(spec, [clip for _, clip in clips], windows, str(top), resize, notes)


def _recordings(top: Path, known: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """All of that name, in the folders of the actions and beside these, in order."""
    actions = [name for name in list_folder(top) if name in ACTIONS]
    for folder in [top, *(top / action for action in actions)]:
        for name in list_folder(folder):
            if match := known.search(name):
                if folder != top and match[2] != folder.name:
                    raise DataFileError(f"{folder / name}: someone {match[2]}, expected {folder.name} in this folder")
                yield folder / name, match


def _split_of(path: Path, match: re.Match[str]) -> str:
    for split, persons in _PERSONS.items():
        if int(match[1]) in persons:
            return split
    raise DataFileError(f"{path}: person {match[1]}, expected 01 to 25")


def _table_of(top: Path) -> Path:
    """Where the table lies: beside the videos or their folders."""
    places = [top, *(top / action for action in ACTIONS if (top / action).is_dir()), top.absolute().parent]
    return next((place / _TABLE for place in places if (place / _TABLE).exists()), top / _TABLE)


def _read_table(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Video -> first and last frame, from 1, of its sequences; of `00sequences.txt`, whose first lines may be prose."""
    open_file(path).close()
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataFileError(str(error)) from None
    table: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("person"):
            continue
        match = _ROW.fullmatch(line)
        pairs = re.findall(r"(\d+)\s*-\s*(\d+)", match[5] or "") if match else []
        if match is None or any(not _within(first, last) for first, last in pairs):
            raise DataFileError(
                f"{path}: line {number} is {in_words(line)}, expected a video and its sequences, like "
                "'person01_boxing_d1 frames 1-95, 96-185'"
            )
        if match[1] in table:
            raise DataFileError(f"{path}: line {number} names {match[1]} again, expected one line for each video")
        if pairs:
            table[match[1]] = [(int(first), int(last)) for first, last in pairs]
    if not table:
        raise DataFileError(f"{path}: no sequences, expected lines like 'person01_boxing_d1 frames 1-95, 96-185'")
    return table


def _within(first: str, last: str) -> bool:
    return max(len(first), len(last)) < 8 and 1 <= int(first) <= int(last) <= _LONGEST


def _video_rows(video: Video, begin: int, rows: np.ndarray) -> np.ndarray:
    return video.frames(begin + rows)[:, :1]


def _video_id(video: Video) -> np.ndarray:
    return np.array([file_id(video.path)])


def _has_pictures(top: Path) -> bool:
    return _has(top, _FOLDER)


def _has_videos(top: Path) -> bool:
    return _has(top, _VIDEO)


def _has(top: Path, known: re.Pattern[str]) -> bool:
    return has(top, known) or any(has(top / action, known) for action in ACTIONS)


PICTURES = TreeReader(Tree("kth", ("kth",), _has_pictures, _EXPECTED), _from_pictures)
VIDEOS = TreeReader(Tree("kth", ("kth",), _has_videos, _EXPECTED), _from_videos)
