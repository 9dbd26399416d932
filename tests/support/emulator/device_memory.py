"""Global memory: the tensors that a launch was given, and stores that other programs do not see yet."""

import numpy as np
import torch

from .fault import Fault


class DeviceMemory:
    """The bytes of tensors at their own addresses; nothing else is there."""

    def __init__(self):
        self.starts = np.zeros(0, np.int64)
        self.regions: list[np.ndarray] = []
        self.changes = 0  # what a program may wait for

    def hold(self, tensors: list[torch.Tensor]) -> None:
        regions: dict[int, np.ndarray] = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                own = torch.empty(0, dtype=torch.uint8).set_(storage)
                regions[storage.data_ptr()] = own.numpy()
        self.starts = np.array(sorted(regions), np.int64)
        self.regions = [regions[start] for start in self.starts]

    def load(self, addresses, width: int):
        """(n,) -> (n, width) uint8."""
        result = np.empty((addresses.size, width), np.uint8)
        for region, offsets, lanes in self._locate(addresses, width):
            result[lanes] = region[offsets[:, None] + np.arange(width)]
        return result

    def store(self, addresses, values) -> None:
        """(n,), (n, width) uint8."""
        self.changes += 1
        for region, offsets, lanes in self._locate(addresses, values.shape[1]):
            region[offsets[:, None] + np.arange(values.shape[1])] = values[lanes]

    def check(self, addresses, width: int) -> None:
        for _ in self._locate(addresses, width):
            pass

    def _locate(self, addresses, width: int):
        """(region, offsets there, lanes) for each tensor that some address is in."""
        addresses = addresses.astype(np.int64)
        if (addresses % width).any():
            raise Fault(f"global address {int(addresses[addresses % width != 0][0]):#x}: not aligned to {width}")
        numbers = np.searchsorted(self.starts, addresses, side="right") - 1
        for number in np.unique(numbers):
            lanes = np.flatnonzero(numbers == number)
            offsets = addresses[lanes] - self.starts[number]
            if number < 0 or offsets.max() + width > self.regions[number].size:
                raise Fault(f"global address {int(addresses[lanes].max()):#x}: outside of every tensor")
            yield self.regions[number], offsets, lanes


class Unpublished:
    """A program's stores on their way: others see a warp's stores once a release follows them, in the warp or, through
    a barrier, in another warp of the program."""

    def __init__(self, memory: DeviceMemory, warps: int):
        self.memory = memory
        self.own: list[list] = [[] for _ in range(warps)]
        self.shared: list = []

    def store(self, warp, addresses, values) -> None:
        self.memory.check(addresses, values.shape[1])
        self.memory.changes += 1
        self.own[warp.number].append((addresses, values))

    def barrier(self) -> None:
        for stores in self.own:
            self.shared += stores
            stores.clear()

    def release(self, warp) -> None:
        self._publish(self.shared)
        self._publish(self.own[warp.number])

    def end(self) -> None:
        self.barrier()
        self._publish(self.shared)

    def _publish(self, stores: list) -> None:
        for addresses, values in stores:
            self.memory.store(addresses, values)
        stores.clear()
