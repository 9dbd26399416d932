"""The process in which HDF5 is read; run as a program by `unistd.tasks.hdf5`, of which it imports nothing.

HDF5's library believes what a file says: damaged ones make it crash, loop or ask for memory without end. Here that ends
this process alone. A request is a line of JSON on standard input, an answer one on standard output, and, for rows, the
array's bytes after it:

    {"path", "groups"}                           -> {"names": {group: [name]}}
    {"path", "numbers": group}                   -> {"numbers": {name: number}}
    {"path", "keys"[, "partial"]}                -> {"datasets": [{"shape", "dtype", "stored"}], "stamp"}
    {"path", "keys": [key], "rows", "stamp"}     -> {}, bytes
    {"path", "keys": [key], "identify", "stamp"} -> {"ids"}
    {"path", "keys", "whole", "stamp"}           -> {}, bytes
    anything that is wrong                       -> {"error"}
"""

import contextlib
import hashlib
import json
import math
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from itertools import islice, pairwise, product
from typing import BinaryIO

import h5py
import numpy as np

_MEMORY = 768 << 20  # bytes beyond what the imports take; rows are asked for in far smaller pieces
_SECONDS, _BYTES_A_SECOND = 1.0, 20e6  # of processor time: for any request, and more for all that can be read
_LONGEST_TEXT = 64
_SMALLEST_HEADER = 16  # bytes that any header has, of a file or a data set
_MOST_NAMES = 100_000
_PIECE = 1 << 10
_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
}


class Refusal(Exception):
    """What is wrong with a file, in words."""


def main(answer_to: Callable[[dict], tuple[dict, np.ndarray | None]] | None = None) -> None:
    """Answers requests until there are no more; `answer_to`: what of a request, by default those on HDF5 files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; this one ends with it
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
    for line in sys.stdin.buffer:
        answer, rows = {}, None
        try:
            answer, rows = (answer_to or _answer)(json.loads(line))
        except Refusal as refusal:
            answer["error"] = str(refusal)
        except MemoryError:
            answer["error"] = "asks for more memory than its size explains"
        except Exception as error:  # h5py raises nearly any kind, depending on which part is damaged
            text = " ".join(str(error).split()) or type(error).__name__
            answer["error"] = f"not a readable HDF5 file ({text[:200]})"
        _limit_time(0)
        answer["bytes"] = 0 if rows is None else rows.nbytes
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        if rows is not None and rows.size:
            sys.stdout.buffer.write(rows.data)
        sys.stdout.buffer.flush()


def _answer(request: dict) -> tuple[dict, np.ndarray | None]:
    path, stamp = request["path"], _stamp(request["path"])
    if request.get("stamp", stamp) != stamp:
        raise Refusal("has changed since it was opened, expected the same file")
    _limit_time(_SECONDS + stamp[0] / _BYTES_A_SECOND)
    with h5py.File(path, "r") as file:  # closed in between: others may write to it
        if "groups" in request:
            return {"names": {group: _names(file, group) for group in request["groups"]}}, None
        if "numbers" in request:
            return {"numbers": _numbers(file, request["numbers"], stamp[0])}, None
        # of rows that are asked for one by one, those matter alone
        partial = request.keys() & {"partial", "rows", "identify"}
        datasets = _datasets(file, request["keys"], stamp[0], bool(partial))
        if "rows" in request:
            return {}, _rows(datasets[0], *request["rows"])
        if "whole" in request:
            return {}, np.stack([_rows(dataset, 0, len(dataset)) for dataset in datasets])
        if "identify" in request:
            with open(path, "rb") as content:
                return {"ids": [_row_id(datasets[0], row, content) for row in request["identify"]]}, None
        return {"datasets": list(map(_description, datasets)), "stamp": stamp}, None


def _row_id(dataset: h5py.Dataset, row: int, file: BinaryIO) -> int:
    """A number of 63 bits for what is stored of a row: a few places of it. -1: never written, 0: nothing but zeros."""
    if dataset.chunks:
        first, *others = dataset.chunks
        grid = product(*(range(0, side, part) for side, part in zip(dataset.shape[1:], others, strict=True)))
        found = [dataset.id.get_chunk_info_by_coord((row, *place)) for place in grid]
        if any(info.byte_offset is None for info in found):
            return -1
        pieces, place = [(info.byte_offset, info.size) for info in found], row % first
    elif dataset.id.get_offset() is not None:
        size = dataset.id.get_storage_size() // len(dataset)
        pieces, place = [(dataset.id.get_offset() + row * size, size)], 0
    else:  # compact: in the data set's header
        content = dataset[row].tobytes()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1 if any(content) else 0
    digest, zeros = hashlib.blake2b(str(place).encode(), digest_size=8), True
    for start, size in pieces:
        digest.update(f" {size} ".encode())
        for begin in (0, max(0, size // 2 - _PIECE), max(0, size - _PIECE)):
            file.seek(start + begin)
            content = file.read(min(size, _PIECE))
            zeros = zeros and not any(content)
            digest.update(content)
    return 0 if zeros else int.from_bytes(digest.digest(), "little") >> 1


def _numbers(file: h5py.File, group: str, file_size: int) -> dict[str, int]:
    """The whole numbers of a group by name."""
    keys = [f"{group}/{name}" for name in _names(file, group)]
    numbers = {}
    for key, dataset in zip(keys, _datasets(file, keys, file_size, False, single=True), strict=True):
        if dataset.dtype.kind not in "iu":
            raise Refusal(f"{key!r} is of type {str(dataset.dtype)[:60]}, expected a whole number")
        numbers[key[len(group) + 1 :]] = int(dataset[()])
    return numbers


def _datasets(
    file: h5py.File, keys: list[str], file_size: int, partial: bool, single: bool = False
) -> list[h5py.Dataset]:
    """The data sets of those names, checked; `partial`: chunks may never have been written; `single`: one number each,
    else arrays."""
    links = {key: _link(file, key) for key in keys}
    for key, link in links.items():
        if link not in ("hard", "nothing"):
            raise Refusal(f"{key!r} is {link}, expected a data set in the file itself")
    if wrong := [key for key in keys if links[key] == "nothing" or file.get(key, getclass=True) is not h5py.Dataset]:
        found = sorted(name[:40] for name in islice(file, 8))
        raise Refusal(f"found keys {found}, expected data sets {' and '.join(map(repr, keys))} (not so: {wrong})")
    base = file.userblock_size
    extents = [(base, _SMALLEST_HEADER, "the file's header")]
    datasets = [file[key] for key in keys]
    for key, dataset in zip(keys, datasets, strict=True):
        if (dataset.shape != ()) if single else not dataset.shape:
            expected = "a single number" if single else "an array"
            raise Refusal(f"{key!r} has no rows (shape {dataset.shape}), expected {expected}")
        extents.append((base + h5py.h5o.get_info(dataset.id).addr, _SMALLEST_HEADER, f"the header of {key}"))
        extents += _check(key, dataset, file_size, partial)
    _check_apart(extents, file_size)
    return datasets


def _names(file: h5py.File, group: str) -> list[str]:
    """Names of what is in a group ("": the file's top); none if there is no such group."""
    if group and (_link(file, group) != "hard" or file.get(group, getclass=True) is not h5py.Group):
        return []
    names = list(islice(file[group or "/"], _MOST_NAMES + 1))
    if len(names) > _MOST_NAMES:
        raise Refusal(f"{group or 'the top'} has more than {_MOST_NAMES} entries, expected fewer")
    return names


def _description(dataset: h5py.Dataset) -> dict:
    dtype, stored = _plain_dtype(dataset), dataset.id.get_storage_size()
    return {"shape": dataset.shape, "dtype": dtype.str, "stored": stored}


def _rows(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    dtype = _plain_dtype(dataset)
    _limit_time(_SECONDS + (stop - start) * math.prod(dataset.shape[1:]) * dtype.itemsize / _BYTES_A_SECOND)
    if dataset.chunks:
        _look_up_chunks(dataset, start, stop)
    if dataset.dtype.kind != "O":
        return np.ascontiguousarray(dataset[start:stop])
    texts = [text if isinstance(text, bytes) else text.encode() for text in dataset[start:stop]]
    if (longest := max(map(len, texts), default=0)) > _LONGEST_TEXT:
        raise Refusal(f"{dataset.name[1:]!r} holds a text of {longest} bytes, expected at most {_LONGEST_TEXT}")
    return np.array(texts, dtype)


def _stamp(path: str) -> list[int]:
    """As `unistd.tasks.files.stamp_of`. A FIFO that has taken the file's place since would be waited for."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise Refusal(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise Refusal("is no longer a file")
    return [status.st_size, status.st_mtime_ns]


def _limit_time(seconds: float) -> None:
    """Ends the process after that much more of processor time; 0: no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _link(file: h5py.File, key: str) -> str:
    """What leads to a key: "hard", "nothing", or in words what is not followed."""
    group = file
    for name in key.split("/"):
        if not isinstance(group, h5py.Group) or name not in group.keys():  # noqa: SIM118 (`in group` follows the link)
            return "nothing"
        kind = group.id.links.get_info(name.encode()).type
        if kind != h5py.h5l.TYPE_HARD:
            words = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link to another file"}
            return words.get(kind, "a user-defined link")
        group = group[name]
    return "hard"


def _plain_dtype(dataset: h5py.Dataset) -> np.dtype:
    """The dtype that rows are sent in: texts of variable length at a fixed one."""
    return np.dtype(f"S{_LONGEST_TEXT}") if dataset.dtype.kind == "O" else dataset.dtype


def _check(key: str, dataset: h5py.Dataset, file_size: int, partial: bool) -> list[tuple[int, int, str]]:
    """Refuses a data set that is not plain numbers or texts which the file holds itself; the extents of its bytes."""
    properties, kind = dataset.id.get_create_plist(), dataset.id.get_type()
    if dataset.is_virtual:
        raise Refusal(f"{key!r} is a virtual data set, made of other files; expected one in the file itself")
    if properties.get_external_count():
        name = properties.get_external(0)[0]
        raise Refusal(f"{key!r} has its data in external storage ({name[:60]!r}), expected them in the file itself")
    if kind.committed():
        raise Refusal(f"{key!r} is of a named type, expected a plain one")
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if not is_text and (dataset.dtype.kind not in "iuf" or not kind.equal(h5py.h5t.py_create(dataset.dtype))):
        raise Refusal(f"{key!r} is of type {str(dataset.dtype)[:60]}, expected plain numbers or texts")
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if code not in _FILTERS or not h5py.h5z.filter_avail(code):
            raise Refusal(f"{key!r} is packed with filter {code}, expected one that is part of HDF5 (gzip, szip, lzf)")
    extents = _extents(key, dataset, properties, partial)
    if beyond := [1 for start, size, _ in extents if start < 0 or size < 0 or start + size > file_size]:
        raise Refusal(f"{key!r} has {len(beyond)} pieces beyond the end of the file, expected all within")
    return extents


def _extents(
    key: str, dataset: h5py.Dataset, properties: h5py.h5p.PropDCID, partial: bool
) -> list[tuple[int, int, str]]:
    """(start, size, key) of every stored piece. A piece that was never written would read as zeros: refused, unless
    `partial`, when it is refused as it is read."""
    declared, layout = dataset.size * dataset.id.get_type().get_size(), properties.get_layout()
    stored = dataset.id.get_storage_size()
    if layout != h5py.h5d.CHUNKED:
        texts = dataset.dtype.kind == "O"  # of which what is stored are addresses, of another size than in memory
        if (stored < declared) if texts else (stored != declared):
            raise Refusal(f"{key!r} declares {declared} bytes, of which {stored} are in the file; expected all")
        # a compact one lies in its header, at no address of its own
        return [(dataset.id.get_offset(), stored, key)] if layout == h5py.h5d.CONTIGUOUS and stored else []
    chunk = dataset.chunks
    whole = math.prod(chunk) * dataset.id.get_type().get_size()
    if whole > _MEMORY // 4:
        raise Refusal(f"{key!r} has chunks of {whole} bytes, expected at most {_MEMORY // 4}")
    chunks = math.prod(-(-side // part) for side, part in zip(dataset.shape, chunk, strict=True))
    extents = []

    def take(info: h5py.h5d.StoreInfo) -> None:
        if info.filter_mask and info.size < whole:  # marked as stored without a filter, and yet smaller than that
            raise Refusal(f"{key!r} has a chunk of {info.size} bytes, expected {whole} where it is not compressed")
        extents.append((info.byte_offset, info.size, key))

    dataset.id.chunk_iter(take)
    if len(extents) > chunks or (len(extents) < chunks and not partial):
        raise Refusal(
            f"{key!r} declares {declared} bytes in {chunks} chunks, of which {len(extents)} are in the file "
            f"({stored} bytes); expected all"
        )
    return extents


def _look_up_chunks(dataset: h5py.Dataset, start: int, stop: int) -> None:
    """Raises where a chunk of those rows is listed and yet not found, which would read as zeros."""
    first, *others = dataset.chunks
    grid = [range(-(-side // part)) for side, part in zip(dataset.shape[1:], others, strict=True)]
    for number in product(range(start // first, -(-stop // first)), *grid):
        place = tuple(n * part for n, part in zip(number, dataset.chunks, strict=True))
        if dataset.id.get_chunk_info_by_coord(place).byte_offset is None:
            raise Refusal(f"{dataset.name[1:]!r} has nothing at {place}: that was never written, expected all")
        dataset.id.read_direct_chunk(place)


def _check_apart(extents: list[tuple[int, int, str]], file_size: int) -> None:
    """Refuses pieces that share bytes: an address is wrong, and what is read there are other data."""
    extents = sorted(extents)
    for (start, size, key), (following, _, other) in pairwise(extents):
        if start + size > following:
            raise Refusal(f"{key!r} and {other!r} share bytes at {following}, expected each to have its own")
    if (total := sum(size for _, size, _ in extents)) > file_size:
        raise Refusal(f"declares {total} bytes in a file of {file_size}")


if __name__ == "__main__":
    main()
