"""Instructions of a warp as a whole: barriers, exchange between lanes, matrices."""

import numpy as np

from .arithmetic import LANES, from_bits16
from .fault import Fault, Unknown
from .matrix import COLUMNS8, ROWS8, fragment, operand_addresses, places_of_16
from .parser import Vector


def _whole(warp, mask) -> None:
    if mask is not None:
        raise Fault("an instruction of the whole warp while its lanes have diverged")


def _barrier(operands, instruction):
    if instruction.opcode[1] == "warp":
        return _whole
    if [operand.bits for operand in instruction.operands] != [0]:
        raise Unknown

    def barrier(warp, mask):
        _whole(warp, mask)
        return "barrier"

    return barrier


def _end(operands, instruction):
    def end(warp, mask):
        _whole(warp, mask)
        return "end"

    return end


def _elect(operands, instruction):
    lane, chosen = (operands.write(o, k) for o, k in zip(instruction.operands[0].parts, ("b32", "pred"), strict=True))

    def elect(warp, mask):
        _whole(warp, mask)
        lane(warp, np.zeros(1, np.uint32), mask)
        chosen(warp, LANES == 0, mask)

    return elect


def _shuffle(operands, instruction):
    how = instruction.opcode[2]
    if how not in ("bfly", "idx") or instruction.operands[3].bits != 31:
        raise Unknown
    target, source, by = instruction.operands[:3]
    write, read, lane = operands.write(target, "b32"), operands.read(source, "b32"), operands.read(by, "u32")

    def shuffle(warp, mask):
        _whole(warp, mask)
        by = np.broadcast_to(lane(warp), 32).astype(np.int64)
        origin = LANES ^ by if how == "bfly" else by & 31
        write(warp, np.broadcast_to(read(warp), 32)[origin], mask)

    return shuffle


def _reduction(operands, instruction):
    if instruction.opcode[2] != "max":
        raise Unknown
    kind = instruction.opcode[-1]
    write, read = operands.write(instruction.operands[0], kind), operands.read(instruction.operands[1], kind)

    def reduction(warp, mask):
        _whole(warp, mask)
        value = np.broadcast_to(read(warp), 32)
        write(warp, np.full(32, value.max(), value.dtype), mask)

    return reduction


def _load_matrices(operands, instruction):
    count = int(next(part for part in instruction.opcode if part in ("x1", "x2", "x4"))[1:])
    writes = [operands.write(part, "b32") for part in instruction.operands[0].parts]
    where = operands.address(instruction.operands[1], "u32")
    places = (COLUMNS8, ROWS8) if "trans" in instruction.opcode else (ROWS8, COLUMNS8)

    def load(warp, mask):
        _whole(warp, mask)
        matrices = warp.program.shared.load(warp, where(warp)[: 8 * count], 16).view(np.uint16).reshape(count, 8, 8)
        for matrix, write in zip(matrices, writes, strict=True):
            write(warp, np.ascontiguousarray(matrix[places]).view(np.uint32)[:, 0], None)

    return load


def _store_matrices(operands, instruction):
    count = int(next(part for part in instruction.opcode if part in ("x1", "x2", "x4"))[1:])
    where = operands.address(instruction.operands[0], "u32")
    reads = [operands.read(part, "b32") for part in instruction.operands[1].parts]
    places = (COLUMNS8, ROWS8) if "trans" in instruction.opcode else (ROWS8, COLUMNS8)

    def store(warp, mask):
        _whole(warp, mask)
        matrices = np.empty((count, 8, 8), np.uint16)
        for matrix, read in zip(matrices, reads, strict=True):
            matrix[places] = np.ascontiguousarray(np.broadcast_to(read(warp), 32))[:, None].view(np.uint16)
        warp.program.shared.store(warp, where(warp)[: 8 * count], matrices.reshape(8 * count, 8).view(np.uint8))

    return store


def _matrix_product(operands, instruction):
    """mma.sync m16n8k16 of 16-bit operands."""
    if instruction.opcode[3] != "m16n8k16" or instruction.opcode[-4:-3] != ["f32"]:
        raise Unknown
    kind = instruction.opcode[-2]
    target, *sources = instruction.operands
    writes = [operands.write(part, "f32") for part in target.parts]
    a, b = ([operands.read(part, "b32") for part in source.parts] for source in sources[:2])
    c = [operands.read(part, "f32") for part in sources[2].parts]
    places = places_of_16(8)

    def product(warp, mask):
        _whole(warp, mask)
        left = from_bits16(fragment([np.broadcast_to(read(warp), 32) for read in a]), kind)
        right = from_bits16(fragment([np.broadcast_to(read(warp), 32) for read in b], transposed=True), kind)
        result = (left @ right.T)[places]
        for i, (write, read) in enumerate(zip(writes, c, strict=True)):
            write(warp, result[:, i] + read(warp), None)

    return product


def _warpgroup(operands, instruction):
    """wgmma: each warp computes its 16 rows of the product when it is issued, and may not use them before it waits."""
    what = instruction.opcode[1]
    if what == "fence":
        return _whole
    if what == "commit_group":

        def commit(warp, mask):
            _whole(warp, mask)
            warp.products.append(([], set()))

        return commit
    if what == "wait_group":
        left = instruction.operands[0].bits

        def wait(warp, mask):
            _whole(warp, mask)
            while len(warp.products) > left + 1:
                for cells in warp.products.pop(0)[0]:
                    warp.program.shared.finish_reading(warp, cells)
            warp.see_products()

        return wait
    return _warpgroup_product(operands, instruction)


def _warpgroup_product(operands, instruction):
    opcode = instruction.opcode
    kind, n = opcode[-1], int(opcode[4].split("n")[1].split("k")[0])
    if kind not in ("bf16", "f16") or not opcode[4].endswith("k16"):
        raise Unknown
    target, a, b, keep, a_sign, b_sign, *transposed = instruction.operands
    if (a_sign.bits, b_sign.bits) != (1, 1):
        raise Unknown
    transposed = [operand.bits != 0 for operand in transposed]
    numbers = [part.number for part in target.parts]
    b_descriptor, keeps = operands.uniform(b, "u64"), operands.uniform(keep, "pred")
    places = places_of_16(n)
    if isinstance(a, Vector):
        a_registers, a_descriptor = [operands.read(part, "b32") for part in a.parts], None
    else:
        a_registers, a_descriptor = None, operands.uniform(a, "u64")

    def from_shared(warp, descriptor: int, rows: slice, count: int, crosswise: bool):
        shared = warp.program.shared
        addresses = operand_addresses(descriptor, count, crosswise)[rows]
        cells = shared.cells(addresses.ravel(), 2)
        shared.start_reading(warp, cells)
        warp.products[-1][0].append(cells)
        return from_bits16(shared.halves[cells], kind).reshape(addresses.shape)

    def product(warp, mask):
        _whole(warp, mask)
        if a_registers is None:
            first = 16 * (warp.number % 4)
            left = from_shared(warp, a_descriptor(warp, None), slice(first, first + 16), 64, transposed[0])
        else:
            left = from_bits16(fragment([np.broadcast_to(read(warp), 32) for read in a_registers]), kind)
        right = from_shared(warp, b_descriptor(warp, None), slice(None), n, transposed[-1])
        result = (left @ right.T)[places]
        registers = warp.registers
        if keeps(warp, None):
            for i, number in enumerate(numbers):
                registers[number] = (registers[number].view(np.float32) + result[:, i]).view(np.uint32)
        else:
            for i, number in enumerate(numbers):
                registers[number] = np.ascontiguousarray(result[:, i]).view(np.uint32)
        warp.products[-1][1].update(numbers)
        warp.see_products()

    return product


TABLE = {
    "bar": _barrier, "ret": _end, "elect": _elect, "shfl": _shuffle, "redux": _reduction, "ldmatrix": _load_matrices,
    "stmatrix": _store_matrices, "mma": _matrix_product, "wgmma": _warpgroup,
}  # fmt: skip
