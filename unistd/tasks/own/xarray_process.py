"""The process in which netCDF and zarr are read, through xarray; run as a program by `forms.xarray`.

As `hdf5_process`, whose loop it runs, it imports nothing of `unistd`. Requests:

    {"path", "variables", "time", "axes"} -> {"axes", "shape", "dtype", "dated", "variables", "bytes"}
    {"path", "variables", "time", "axes", "times": true} -> {}, float64 bytes
    {"path", "variables", "time", "axes", "rows": [...]} -> {}, bytes (n, C, h, w) or without C
"""

import importlib.util
import os
import warnings
from itertools import islice
from pathlib import Path

import numpy as np

_spec = importlib.util.spec_from_file_location("hdf5_process", Path(__file__).parents[1] / "hdf5_process.py")
_loop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_loop)
Refusal = _loop.Refusal

_TIMES = ("time", "t", "date", "valid_time", "time_counter", "month", "year", "frame")
_MOST_FRAMES = 10_000_000
_LARGE, _EXPANSION = 64 << 20, 100  # as unistd.tasks.files.check_expansion
_SECONDS, _BYTES_A_SECOND = 6.0, 20e6
_opened: dict[tuple, object] = {}  # the last one


def answer(request: dict) -> tuple[dict, np.ndarray | None]:
    """What of a request; raises Refusal."""
    import xarray  # takes a second

    size = _size(request["path"])
    rows = request.get("rows")
    _loop._limit_time(_SECONDS + size / _BYTES_A_SECOND)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = _open(xarray, request["path"])
            arrays, axes, time = _arrays(dataset, request)
            declared = sum(array.size * array.dtype.itemsize for array in arrays)
            if declared > max(_LARGE, _EXPANSION * size):
                raise Refusal(
                    f"declares {declared} bytes in a store of {size}, expected at most {_EXPANSION} times as many"
                )
            if rows is not None:
                chosen = [np.asarray(array.isel({time: rows}).transpose(time, ...).values) for array in arrays]
                return {}, np.ascontiguousarray(_joined(chosen, axes))
            times, dated = _times(dataset, arrays[0], time, request["time"])
            if request.get("times"):
                return {}, times
            shape = list(_joined([_empty(array, time) for array in arrays], axes).shape)
            kind = np.result_type(*arrays).str
            return {"axes": axes, "shape": shape, "dtype": kind, "dated": dated}, None
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # of xarray and the libraries below it: nearly any kind
        text = " ".join(str(error).split()) or type(error).__name__
        raise Refusal(f"not readable as netCDF or zarr ({text[:200]})") from None


def _open(xarray, path: str):
    status = os.stat(path)
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _opened:
        _opened.clear()
        engine = "zarr" if os.path.isdir(path) else _engine(path)
        options = {"engine": engine, "cache": False, "chunks": None}
        try:
            dataset = xarray.open_dataset(path, **options)
        except Exception:  # a calendar that is not known: then times are numbers
            dataset = xarray.open_dataset(path, decode_times=False, **options)
        _opened[key] = dataset
    return _opened[key]


def _engine(path: str) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    if start[:3] == b"CDF":
        return "scipy"
    if start == b"\x89HDF\r\n\x1a\n":
        return "h5netcdf"
    raise Refusal(f"not a netCDF file (it starts with {start!r})")


def _size(path: str) -> int:
    """Bytes of a file, or of all files of a store."""
    if not os.path.isdir(path):
        return os.stat(path).st_size
    files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(os.stat(name).st_size for name in islice(files, 1_000_000))


def _arrays(dataset, request: dict) -> tuple[list, str, str]:
    """The variables, which are alike; their axes with time first, as a word of the letters t, c, h, w; time's name."""
    names = request["variables"] or [name for name, array in dataset.data_vars.items() if array.ndim >= 3]
    if not request["variables"] and len(names) != 1:
        raise Refusal(f"variable is null, expected one of {sorted(map(str, dataset.data_vars))[:8]}")
    if wrong := [name for name in names if name not in dataset.variables]:
        raise Refusal(f"no variable {wrong[0]!r}, expected one of {sorted(map(str, dataset.data_vars))[:8]}")
    arrays = [dataset[name].squeeze([d for d in dataset[name].dims if _single(dataset[name], d)]) for name in names]
    for array in arrays:
        if array.dtype.kind not in "iuf" or array.dims != arrays[0].dims or array.shape != arrays[0].shape:
            what = f"{array.name!r} is {array.dtype} {dict(array.sizes)}"
            raise Refusal(f"{what}, expected numbers of time, height and width, alike in each variable")
    dims, said = list(arrays[0].dims), request["axes"]
    if said is None:
        time = next((dim for dim in dims if _is_time(dataset, dim)), None)
        if time is None or not 3 <= len(dims) <= 4:
            raise Refusal(f"{names[0]!r} has dimensions {dict(arrays[0].sizes)}; axes says what they are, as tchw")
        letters = iter("chw" if len(dims) == 4 else "hw")
        said = "".join("t" if dim == time else next(letters) for dim in dims)
    if len(said) != len(dims) or "n" in said:
        raise Refusal(f"{names[0]!r} has dimensions {dict(arrays[0].sizes)}, expected axes {said!r}")
    time = dims[said.index("t")]
    if not 0 < arrays[0].sizes[time] <= _MOST_FRAMES:
        raise Refusal(f"{names[0]!r} has {arrays[0].sizes[time]} frames, expected 1 to {_MOST_FRAMES}")
    return arrays, "t" + said.replace("t", ""), time


def _single(array, dim: str) -> bool:
    return array.sizes[dim] == 1 and array.ndim > 3 and str(dim).lower() not in _TIMES


def _is_time(dataset, dim: str) -> bool:
    return str(dim).lower() in _TIMES or (dim in dataset.coords and dataset[dim].dtype.kind == "M")


def _empty(array, time: str) -> np.ndarray:
    """Of the type and, with time first, the shape of a variable, in no memory."""
    sizes = [array.sizes[time], *(size for dim, size in array.sizes.items() if dim != time)]
    return np.broadcast_to(np.empty((), array.dtype), sizes)


def _joined(arrays: list[np.ndarray], axes: str) -> np.ndarray:
    """Arrays (n, ...) with the axes of a frame as said -> (n, C, h, w)."""
    order = [axes.index(letter) for letter in "tchw" if letter in axes]
    frames = [array.transpose(order) if array.ndim == 4 else array.transpose(order)[:, None] for array in arrays]
    return np.concatenate(frames, axis=1) if len(frames) > 1 else frames[0]


def _times(dataset, array, time: str, said: str | None) -> tuple[np.ndarray, bool]:
    """Seconds since 1970, or numbers as they are; 0, 1, 2, ... where there are none."""
    name = said if said is not None else time
    if name not in dataset.variables:
        if said is not None:
            raise Refusal(f"no variable {said!r}, expected one of times")
        return np.arange(array.sizes[time], dtype=np.float64), False
    values = dataset[name].values
    if values.shape != (array.sizes[time],):
        raise Refusal(
            f"{name!r} has shape {values.shape}, expected one time for each of the {array.sizes[time]} frames"
        )
    if values.dtype.kind == "M":
        if np.isnat(values).any():
            raise Refusal(f"{name!r} holds no time in row {int(np.isnat(values).argmax())}, expected times")
        return values.astype("datetime64[us]").astype(np.int64) / 1e6, True
    if values.dtype.kind not in "iuf" or not np.isfinite(values.astype(np.float64)).all():
        raise Refusal(f"{name!r} is {values.dtype}, expected finite times")
    return values.astype(np.float64), False


if __name__ == "__main__":
    _loop.main(answer)
