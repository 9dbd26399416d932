"""Loads, stores, atomics, asynchronous copies, mbarriers and fences."""

import numpy as np

from .arithmetic import LANES, TYPES
from .fault import Fault, Unknown
from .parser import Symbol, Vector


def _parts(operand) -> tuple:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def _lanes(mask):
    return LANES if mask is None else np.flatnonzero(mask)


def _load(operands, instruction):
    opcode, (target, address) = instruction.opcode, instruction.operands
    kind, space = opcode[-1], opcode[1]
    size = np.dtype(TYPES[kind]).itemsize
    writes = [operands.write(part, kind) for part in _parts(target)]
    if space == "param":
        start = operands.kernel.parameters[address.base.name][0] + address.offset

        def parameter(warp, mask):
            value = warp.program.launch.parameters[start : start + size].view(TYPES[kind])
            writes[0](warp, value, mask)

        return parameter
    where = operands.address(address, "u64" if space == "global" else "u32")
    width = size * len(writes)
    acquire = "acquire" in opcode

    def load(warp, mask):
        lanes = _lanes(mask)
        if space == "global":
            values = warp.program.launch.memory.load(where(warp)[lanes], width)
        else:
            values = warp.program.shared.load(warp, where(warp)[lanes], width)
        values = values.view(TYPES[kind])
        for i, write in enumerate(writes):
            value = np.zeros(32, values.dtype)
            value[lanes] = values[:, i]
            write(warp, value, mask)
        return "in vain" if acquire else None

    return load


def _store(operands, instruction):
    opcode, (address, source) = instruction.opcode, instruction.operands
    kind, space = opcode[-1], opcode[1]
    reads = [operands.read(part, kind) for part in _parts(source)]
    where = operands.address(address, "u64" if space == "global" else "u32")

    def store(warp, mask):
        lanes = _lanes(mask)
        values = np.stack([np.broadcast_to(read(warp), 32)[lanes] for read in reads], 1)
        values = np.ascontiguousarray(values).view(np.uint8)
        if space == "global":
            warp.program.unpublished.store(warp, where(warp)[lanes], values)
        else:
            warp.program.shared.store(warp, where(warp)[lanes], values)

    return store


def _atomic(operands, instruction):
    opcode, (target, address, value) = instruction.opcode, instruction.operands
    if opcode[1] != "global" or "add" not in opcode:
        raise Unknown
    kind = opcode[-1]
    where, read, write = operands.address(address, "u64"), operands.read(value, kind), operands.write(target, kind)
    releases = "release" in opcode or "acq_rel" in opcode
    outcome = "in vain" if "acquire" in opcode else "turn"

    def add(warp, mask):
        if releases:
            warp.program.unpublished.release(warp)
        memory, before = warp.program.launch.memory, np.zeros(32, TYPES[kind])
        addresses, values = where(warp), np.broadcast_to(read(warp), 32)
        for lane in _lanes(mask):
            place = addresses[lane : lane + 1]
            before[lane] = memory.load(place, before.itemsize).view(before.dtype)[0, 0]
            after = before[lane : lane + 1] + values[lane : lane + 1]
            if after != before[lane]:
                memory.store(place, after.view(np.uint8).reshape(1, -1))
        write(warp, before, mask)
        return outcome

    return add


def _asynchronous_copy(operands, instruction):
    """cp.async, its groups, and bulk copies of tensor maps."""
    opcode = instruction.opcode
    if "commit_group" in opcode:
        bulk = "bulk" in opcode

        def commit(warp, mask):
            (warp.stores if bulk else warp.copies).append([])

        return commit
    if "wait_group" in opcode:
        return _wait_for_groups(instruction.operands[0].bits, "bulk" in opcode)
    if "bulk" in opcode:
        return _bulk_copy(operands, instruction)
    target, source, width = instruction.operands[:3]
    width = width.bits
    to, of = operands.address(target, "u32"), operands.address(source, "u64")
    sizes = operands.read(instruction.operands[3], "u32") if len(instruction.operands) > 3 else None

    def copy(warp, mask):
        lanes = _lanes(mask)
        size = np.full(lanes.size, width) if sizes is None else np.broadcast_to(sizes(warp), 32)[lanes]
        warp.copies[-1].append(warp.program.copies.copy(warp, to(warp)[lanes], of(warp)[lanes], width, size))

    return copy


def _wait_for_groups(left: int, bulk: bool):
    def wait(warp, mask):
        groups = warp.stores if bulk else warp.copies
        while len(groups) > left + 1:
            for cells in groups.pop(0):
                if bulk:
                    warp.program.shared.finish_reading(warp, cells)
                else:
                    warp.program.copies.copied(warp, cells)

    return wait


def _bulk_copy(operands, instruction):
    loads = instruction.opcode[5] != "global"  # cp.async.bulk.tensor.2d.TO.FROM
    tensor, place = instruction.operands[:2][:: -1 if loads else 1]
    which = operands.uniform(tensor.base, "u64")
    corner = [operands.uniform(one, "s32") for one in tensor.coordinates]
    shared = operands.uniform(place.base, "u32")
    barrier = operands.uniform(instruction.operands[2].base, "u32") if loads else None

    def copy(warp, mask):
        if _lanes(mask).size != 1:
            raise Fault("a bulk copy by several lanes")
        maps = warp.program.launch.maps
        column, row = (one(warp, mask) for one in corner)
        arguments = warp, maps[which(warp, mask)], column, row, shared(warp, mask)
        if loads:
            warp.program.copies.load(*arguments, barrier(warp, mask))
        else:
            warp.stores[-1].append(warp.program.copies.store(*arguments))

    return copy


def _mbarrier(operands, instruction):
    what = instruction.opcode[1]
    address = next(o for o in instruction.operands if hasattr(o, "base"))
    where = operands.address(address, "u32")

    def place(warp, mask):
        return int(where(warp)[_lanes(mask)[0]])

    if what == "init":
        count = instruction.operands[1].bits

        def init(warp, mask):
            warp.program.copies.make(warp, place(warp, mask), count)

        return init
    if what == "inval":

        def invalidate(warp, mask):
            warp.program.copies.unmake(warp, place(warp, mask))

        return invalidate
    if what == "arrive":
        if instruction.operands[0] != Symbol("_") or "expect_tx" not in instruction.opcode:
            raise Unknown
        expected = operands.uniform(instruction.operands[2], "u32")

        def arrive(warp, mask):
            warp.program.copies.arrive(warp, place(warp, mask), expected(warp, mask))

        return arrive
    if what != "try_wait":
        raise Unknown
    write, parity = operands.write(instruction.operands[0], "pred"), operands.uniform(instruction.operands[2], "u32")

    def try_wait(warp, mask):
        complete = warp.program.copies.barrier(warp, place(warp, mask)).phase != parity(warp, mask) & 1
        write(warp, np.full(32, complete), mask)
        return None if complete else "in vain"

    return try_wait


def _fence(operands, instruction):
    if "proxy" not in instruction.opcode:
        raise Unknown
    return lambda warp, mask: warp.program.shared.fence(warp)


TABLE = {
    "ld": _load, "st": _store, "atom": _atomic, "cp": _asynchronous_copy, "mbarrier": _mbarrier, "fence": _fence,
}  # fmt: skip
