"""Takes the place of the GPU's driver below Triton: what is launched is emulated, with CPU tensors as its memory."""

import itertools
import struct
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from .copies import TensorMap
from .decoder import PARAMETERS, decode
from .device_memory import DeviceMemory
from .execution import Launch
from .parser import parse

FUNCTIONS = itertools.count(1)


def driver_without_device(launcher, capability: int, number: int) -> SimpleNamespace:
    """What Triton asks of a driver to compile for compute capability `capability` and to call `launcher`'s launchers.

    number: of the device. Triton keeps what it has compiled, and its launcher, by device.
    """
    from triton.backends.compiler import GPUTarget

    return SimpleNamespace(
        get_current_device=lambda: number,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        launcher_cls=launcher,
        utils=SimpleNamespace(
            load_binary=lambda *_: (1, next(FUNCTIONS), 100, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
        ),
    )


class Emulated:
    """A GPU of compute capability `capability` (90: sm_90) on which `resident` programs run side by side.

    `with` makes it Triton's device. `launched`: the kernels' names so far. Tensors in memory count as the device's only
    while a launch has them as arguments. `last`: of each launch only so many programs run, those with the highest
    numbers; the others are thought to be done.
    """

    def __init__(self, capability: int = 90, resident: int = 3, seed: int = 0, last: int | None = None):
        self.capability, self.resident, self.seed, self.last = capability, resident, seed, last
        self.launched: list[str] = []

    def __enter__(self):
        from triton.runtime import driver

        self._before = driver._active
        driver._active = driver_without_device(_launcher, self.capability, number=self.capability)
        driver._active.emulated = self
        return self

    def __exit__(self, *_):
        from triton.runtime import driver

        driver._active = self._before

    def launch(self, programs: int, types, metadata, arguments) -> None:
        self.launched.append(metadata.name)
        launch = _launch(types, metadata, arguments, self.seed + len(self.launched))
        launch.run(programs, self.resident, self.last or programs)


def _launcher(source, metadata):
    def launch(x, y, z, stream, function, packed, launch_metadata, on_enter, on_exit, *arguments):
        from triton.runtime import driver

        assert (y, z) == (1, 1)
        driver._active.emulated.launch(x, source.signature.values(), metadata, arguments)

    return launch


@cache
def compiled(hash: str, name: str):
    """(the kernel's listing, its decoded steps) from Triton's cache."""
    from triton.runtime.cache import get_cache_manager

    files = get_cache_manager(hash).get_group(f"{name}.json")
    kernel = parse(Path(files[f"{name}.ptx"]).read_text())
    return kernel, decode(kernel)


def _launch(types, metadata, arguments, seed: int) -> Launch:
    kernel, code = compiled(metadata.hash, metadata.name)
    places = list(kernel.parameters.values())
    parameters = bytearray(kernel.parameter_bytes)
    maps: dict[int, TensorMap] = {}
    tensors = []

    def put(value: bytes) -> int:
        offset, size = places.pop(0)
        assert len(value) == size, f"{kernel.name}: a parameter of {size} bytes gets {len(value)}"
        parameters[offset : offset + size] = value
        return offset

    described = iter(metadata.tensordesc_meta or ())
    for kind, value in zip(types, arguments, strict=True):
        if kind == "constexpr":
            continue
        if kind.startswith("tensordesc"):
            meta = next(described)
            tensors.append(value.base)
            maps[PARAMETERS + put(bytes(128))] = TensorMap(value.base, meta["block_size"], meta["swizzle"])
            for size in value.shape:
                put(struct.pack("<i", size))
            for stride in value.strides:
                put(struct.pack("<q", stride))
        elif isinstance(value, torch.Tensor):
            tensors.append(value)
            put(struct.pack("<Q", value.data_ptr()))
        else:
            put(struct.pack("<f" if kind == "fp32" else "<i", value))
    while places:  # Triton's scratch memory, of which these kernels need none
        put(bytes(8))
    memory = DeviceMemory()
    memory.hold(tensors)
    return Launch(kernel, code, metadata.shared, memory, bytes(parameters), maps, seed)
