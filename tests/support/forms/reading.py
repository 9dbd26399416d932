"""What readers make of files: every sample of every split, or the one line of a refusal."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from support.bad_files import refusal
from unistd.tasks import SPLITS, TaskSpec, build_dataset

BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "a page of HTML": lambda content: b"<!DOCTYPE html>\n<html>\n" * 40,
    "a pickle": lambda content: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    "the second half": lambda content: content[len(content) // 2 :],
}


def read_all(spec: TaskSpec, root: Path) -> dict[str, np.ndarray]:
    """Split -> its samples, (n, Tin + Tout, C, H, W) in [0, 1]."""
    found = {}
    for split in SPLITS:
        data = build_dataset(spec, split, root=root)
        found[split] = np.stack([np.concatenate(data[index]) for index in range(len(data))])
    return found


def refused(path: Path, spec: TaskSpec, root: Path) -> str:
    """The one line, beginning with `path`, of what comes of reading all of it."""
    return refusal(path, read_all, spec, root)


def counts(spec: TaskSpec, root: Path) -> tuple[int, ...]:
    """Samples of train, val and test, all of which have been read."""
    return tuple(len(samples) for samples in read_all(spec, root).values())
