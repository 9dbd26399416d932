"""Asynchronous copies of a program: cp.async, bulk copies of tensor maps, and the mbarriers that these report to."""

import numpy as np

from .device_memory import DeviceMemory
from .fault import Fault, Unknown
from .matrix import swizzled
from .shared import BASE, Shared

SWIZZLES = {1: 32, 2: 64, 3: 128}  # bytes, by a tensor map's number


class TensorMap:
    """What a TMA descriptor holds. tensor: contiguous, 2-D; block: (rows, columns) of one copy; swizzle: 1 to 3."""

    def __init__(self, tensor, block: list[int], swizzle: int):
        if swizzle not in SWIZZLES:
            raise Unknown(f"a tensor map with swizzle {swizzle}, expected one of {list(SWIZZLES)}")
        self.address, self.shape, self.block = tensor.data_ptr(), tensor.shape, block
        self.size, self.swizzle = tensor.element_size(), SWIZZLES[swizzle]
        if self.address % 16 or tensor.shape[1] * self.size % 16:
            raise Fault("a tensor map whose address or rows are not aligned to 16 bytes")
        if block[1] * self.size > self.swizzle:
            raise Fault(f"a tensor map with lines of {block[1] * self.size} bytes and swizzle {self.swizzle}")

    def places(self, column: int, row: int, shared_address: int):
        """(global addresses, shared addresses, there) of a block's elements, (rows, columns) each."""
        if shared_address % 128:
            raise Fault(f"a bulk copy at shared address {shared_address}: not aligned to 128")
        rows, columns = row + np.arange(self.block[0])[:, None], column + np.arange(self.block[1])[None, :]
        there = (rows >= 0) & (rows < self.shape[0]) & (columns >= 0) & (columns < self.shape[1])
        inside = np.arange(self.block[0] * self.block[1]).reshape(self.block) * self.size
        return (
            self.address + (rows * self.shape[1] + columns) * self.size,
            swizzled(shared_address + inside, self.swizzle),
            there,
        )


class Barrier:
    def __init__(self, count: int):
        self.count = self.missing = count
        self.bytes = 0  # expected, not yet arrived
        self.phase = 0

    def settle(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.phase ^= 1
            self.missing = self.count


class Copies:
    """Of one program. Data moves when a copy is started; until somebody has waited for it nobody may look."""

    def __init__(self, shared: Shared, memory: DeviceMemory):
        self.shared, self.memory = shared, memory
        self.barriers: dict[int, Barrier] = {}
        self.on_the_way: list[tuple[int, np.ndarray, int]] = []  # barrier, cells, bytes

    def make(self, warp, address: int, count: int) -> None:
        self._write(warp, address)
        self.barriers[address] = Barrier(count)

    def unmake(self, warp, address: int) -> None:
        self._write(warp, address)
        del self.barriers[address]

    def barrier(self, warp, address: int) -> Barrier:
        """The one at `address`, for the warp to use."""
        if address not in self.barriers:
            raise Fault(f"no mbarrier was made at shared address {address}")
        self.shared.check_read(warp, self._cells(address))
        return self.barriers[address]

    def arrive(self, warp, address: int, expected: int) -> None:
        barrier = self.barrier(warp, address)
        if barrier.missing == 0:
            raise Fault("more arrivals than the mbarrier counts")
        barrier.missing -= 1
        barrier.bytes += expected
        barrier.settle()

    def load(self, warp, tensor: TensorMap, column: int, row: int, target: int, barrier: int) -> None:
        """cp.async.bulk.tensor from global to shared memory: elements outside of the tensor arrive as 0."""
        self.barrier(warp, barrier)
        source, places, there = tensor.places(column, row, target)
        values = np.zeros((places.size, tensor.size), np.uint8)
        lanes = there.ravel()
        values[lanes] = self.memory.load(source.ravel()[lanes], tensor.size)
        cells = self.shared.cells(places.ravel(), tensor.size)
        self.shared.check_write(warp, cells)
        self.shared.check_fenced(warp, cells)
        self.shared.data[places.ravel()[:, None] - BASE + np.arange(tensor.size)] = values
        self.shared.incoming[cells] += 1
        self.shared.written[cells] = -1
        self.on_the_way.append((barrier, cells, places.size * tensor.size))

    def land(self, number: int) -> None:
        """One of the bulk loads arrives."""
        address, cells, size = self.on_the_way.pop(number)
        self.shared.incoming[cells] -= 1
        self.barriers[address].bytes -= size
        self.barriers[address].settle()
        self.memory.changes += 1

    def store(self, warp, tensor: TensorMap, column: int, row: int, source: int) -> np.ndarray:
        """cp.async.bulk.tensor from shared to global memory; returns the cells that it reads."""
        target, places, there = tensor.places(column, row, source)
        cells = self.shared.cells(places.ravel(), tensor.size)
        self.shared.start_reading(warp, cells)
        lanes = there.ravel()
        values = self.shared.data[places.ravel()[lanes][:, None] - BASE + np.arange(tensor.size)]
        self.memory.store(target.ravel()[lanes], values)
        return cells

    def copy(self, warp, targets, sources, width: int, sizes) -> np.ndarray:
        """cp.async of a warp's lanes: `sizes` bytes of `width`, zeros after them; returns the cells it fills."""
        values = np.zeros((targets.size, width), np.uint8)
        whole = sizes == width
        if (~whole & (sizes != 0)).any():
            raise Fault("cp.async of a part of its bytes: not emulated")
        values[whole] = self.memory.load(sources[whole], width)
        cells = self.shared.cells(targets, width)
        self.shared.check_write(warp, cells)
        self.shared.data[targets.astype(np.int64)[:, None] - BASE + np.arange(width)] = values
        self.shared.incoming[cells] += 1
        return cells

    def copied(self, warp, cells) -> None:
        """The warp has waited for a copy of its own. (No fence is asked for: cp.async feeds wgmma as it is.)"""
        self.shared.incoming[cells] -= 1
        self.shared.wrote(warp, cells)
        self.shared.unfenced[cells] = False

    def _cells(self, address: int) -> np.ndarray:
        return self.shared.cells(np.array([address]), 8)

    def _write(self, warp, address: int) -> None:
        cells = self._cells(address)
        self.shared.check_write(warp, cells)
        self.shared.wrote(warp, cells)
