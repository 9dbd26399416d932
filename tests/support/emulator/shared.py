"""A program's shared memory. For every 2 bytes it knows who used them last and what is under way there."""

import numpy as np

from .fault import Fault

BASE = 1024  # where the dynamic part begins on sm_90: no address is 0
NOBODY, SEVERAL = -1, -2


class Shared:
    """Addresses are bytes, from BASE on. A `warp` has `number` and `epoch`, the barriers that it has passed.

    Two warps that touch the same place between two barriers, one of them writing, are a race whatever their order was.
    """

    def __init__(self, size: int):
        self.data = np.full(size, 0xFF, np.uint8)  # NaN in every float format
        self.halves = self.data.view(np.uint16)
        cells = size // 2
        self.writer = np.full(cells, NOBODY, np.int16)
        self.written = np.full(cells, -1, np.int32)  # epoch
        self.reader = np.full(cells, NOBODY, np.int16)
        self.read_in = np.full(cells, -1, np.int32)  # epoch
        self.incoming = np.zeros(cells, np.int16)  # copies that nobody has waited for yet
        self.under_read = np.zeros(cells, np.int16)  # matrix products and bulk stores that may still read
        self.unfenced = np.zeros(cells, np.bool_)  # ordinary stores that asynchronous units need not see ...
        self.fences = np.zeros(cells, np.uint32)  # ... but for warps that have fenced them since, a bit each,
        self.fenced = np.zeros(cells, np.int32)  # and for all after the next barrier: epoch of the last fence

    def load(self, warp, addresses, width: int):
        """(n,) -> (n, width) uint8."""
        places = self._places(addresses, width)
        self.check_read(warp, places[:, ::2].ravel() >> 1)
        return self.data[places]

    def store(self, warp, addresses, values) -> None:
        """(n,), (n, width) uint8."""
        places = self._places(addresses, values.shape[1])
        cells = places[:, ::2].ravel() >> 1
        same = (self.data[places] == values).reshape(cells.size, 2).all(1)
        self.check_write(warp, cells, same)
        self.data[places] = values
        self.wrote(warp, cells)
        self.unfenced[cells] = True
        self.fences[cells] = 0

    def cells(self, addresses, width: int):
        """(n,) -> the cells of n * width bytes, in order."""
        return self._places(addresses, width)[:, ::2].ravel() >> 1

    def check_read(self, warp, cells) -> None:
        """For a read by the warp now; remembers it."""
        if self.incoming[cells].any():
            raise Fault("reads shared memory that a copy has not filled yet")
        if ((self.written[cells] == warp.epoch) & (self.writer[cells] != warp.number)).any():
            raise Fault("reads shared memory that another warp wrote since the last barrier")
        self.has_read(warp, cells)

    def has_read(self, warp, cells) -> None:
        others = (self.read_in[cells] == warp.epoch) & (self.reader[cells] != warp.number)
        self.reader[cells] = np.where(others, SEVERAL, warp.number)
        self.read_in[cells] = warp.epoch

    def check_write(self, warp, cells, same=False) -> None:
        """For a write by the warp, or by a copy that it starts, now. same: by cell, whether it writes what is there:
        two warps that hold copies of a value may both store it."""
        if self.incoming[cells].any():
            raise Fault("writes to shared memory that a copy is filling")
        if self.under_read[cells].any():
            raise Fault("writes to shared memory that a matrix product or a bulk store may still read")
        if ((self.read_in[cells] == warp.epoch) & (self.reader[cells] != warp.number)).any():
            raise Fault("writes to shared memory that another warp read since the last barrier")
        if ((self.written[cells] == warp.epoch) & (self.writer[cells] != warp.number) & ~np.asarray(same)).any():
            raise Fault("writes to shared memory that another warp wrote since the last barrier")

    def wrote(self, warp, cells) -> None:
        self.writer[cells] = warp.number
        self.written[cells] = warp.epoch

    def start_reading(self, warp, cells) -> None:
        """An asynchronous unit begins to read, on behalf of the warp."""
        self.check_read(warp, cells)
        self.check_fenced(warp, cells)
        self.under_read[cells] += 1

    def check_fenced(self, warp, cells) -> None:
        """For a read or a write by an asynchronous unit on behalf of the warp: a proxy fence lies on the way to it."""
        cells = cells[self.unfenced[cells]]
        fences = self.fences[cells]
        by_itself = fences & np.uint32(1 << warp.number) != 0
        if not (by_itself | (fences != 0) & (self.fenced[cells] < warp.epoch)).all():
            raise Fault("an asynchronous unit is used where ordinary stores wrote, without fence.proxy.async between")

    def finish_reading(self, warp, cells) -> None:
        self.under_read[cells] -= 1
        self.has_read(warp, cells)

    def fence(self, warp) -> None:
        """fence.proxy.async: for what this warp wrote, and what it has seen through a barrier."""
        cells = np.flatnonzero(self.unfenced)
        cells = cells[(self.writer[cells] == warp.number) | (self.written[cells] < warp.epoch)]
        before = (self.fences[cells] != 0) & (self.fenced[cells] < warp.epoch)
        self.unfenced[cells[before]] = False
        self.fences[cells[~before]] |= np.uint32(1 << warp.number)
        self.fenced[cells[~before]] = warp.epoch

    def _places(self, addresses, width: int):
        first = addresses.astype(np.int64) - BASE
        if first.min() < 0 or first.max() + width > self.data.size:
            raise Fault(f"shared address {int(addresses.max())}: outside of the {self.data.size} bytes")
        if (first % min(width, 16)).any():
            raise Fault(f"shared address {int(addresses[first % min(width, 16) != 0][0])}: not aligned to {width}")
        return first[:, None] + np.arange(width)
