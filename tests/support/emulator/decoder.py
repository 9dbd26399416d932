"""Instruction -> a function (warp, mask) that does it; mask: the lanes, None for all 32.

The function returns None, or why the warp stops here: "barrier", "end", "turn" (others may go on), "in vain" (likewise,
and it has to look again).
"""

from dataclasses import dataclass, field

import numpy as np

from . import memory_instructions, warp_instructions
from .arithmetic import TYPES, computation
from .fault import Unknown
from .parser import Address, Immediate, Instruction, Kernel, Register, Symbol, Vector
from .shared import BASE

PARAMETERS = 1 << 60  # where the kernel's parameters lie


@dataclass
class Step:
    run: object
    opcode: list[str]
    text: str
    source: str
    guard: int | None = None
    negated: bool = False
    target: int = -1
    touches: set[int] = field(default_factory=set)  # registers


def decode(kernel: Kernel) -> list[Step]:
    operands = Operands(kernel)
    steps = []
    for instruction in kernel.instructions:
        try:
            steps.append(_step(operands, instruction))
        except (Unknown, KeyError) as error:  # KeyError: a type
            raise Unknown(f"{instruction.text} ({error!r})") from None
    return steps


def _step(operands: "Operands", instruction: Instruction) -> Step:
    step = Step(None, instruction.opcode, instruction.text, instruction.source, target=instruction.target)
    step.touches = set(_registers(instruction.operands))
    if instruction.guard is not None:
        step.guard, step.negated = instruction.guard.number, instruction.negated
    if instruction.target >= 0:
        return step
    for table in (memory_instructions.TABLE, warp_instructions.TABLE):
        make = table.get(instruction.opcode[0])
        if make is not None:
            step.run = make(operands, instruction)
            return step
    if instruction.opcode[0] in ("mov", "cvta"):
        step.run = _move(operands, instruction)
        return step
    found = computation(instruction.opcode)
    if found is None:
        raise Unknown
    function, kinds, result = found
    target, *sources = instruction.operands
    reads = [operands.read(source, kind) for source, kind in zip(sources, kinds, strict=True)]
    write = operands.write(target, result)
    step.run = lambda warp, mask: write(warp, function(*[read(warp) for read in reads]), mask)
    return step


def _move(operands: "Operands", instruction: Instruction):
    kind = instruction.opcode[-1]
    target, source = instruction.operands
    if isinstance(target, Vector):  # the parts of a register, the lowest first
        read = operands.read(source, kind)
        part = f"u{np.dtype(TYPES[kind]).itemsize * 8 // len(target.parts)}"
        writes = [operands.write(one, part) for one in target.parts]

        def unpack(warp, mask):
            parts = np.ascontiguousarray(read(warp)).view(TYPES[part]).reshape(-1, len(writes))
            for i, write in enumerate(writes):
                write(warp, parts[:, i].copy(), mask)

        return unpack
    write = operands.write(target, kind)
    if isinstance(source, Vector):
        part = f"u{np.dtype(TYPES[kind]).itemsize * 8 // len(source.parts)}"
        reads = [operands.read(one, part) for one in source.parts]

        def pack(warp, mask):
            parts = [np.broadcast_to(read(warp), 32) for read in reads]
            write(warp, np.stack(parts, 1).view(TYPES[kind])[:, 0], mask)

        return pack
    read = operands.read(source, kind)
    return lambda warp, mask: write(warp, read(warp), mask)


def _registers(operands):
    for operand in operands:
        if isinstance(operand, Register):
            yield operand.number
        elif isinstance(operand, Vector):
            yield from _registers(operand.parts)
        elif isinstance(operand, Address):
            yield from _registers((operand.base, *operand.coordinates))


class Operands:
    """Functions that read and write what an instruction names."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel

    def read(self, operand, kind: str):
        """function of a warp -> (32,) or (1,) of the numpy type of `kind`."""
        dtype = np.dtype(TYPES[kind])
        if isinstance(operand, Register):
            number = operand.number
            if operand.width == 1 or operand.width == dtype.itemsize * 8:
                return lambda warp: warp.registers[number].view(dtype)
            if operand.width < dtype.itemsize * 8:
                raise Unknown(f"a register of {operand.width} bits read as {kind}")
            narrow = np.dtype(f"u{dtype.itemsize}")
            return lambda warp: warp.registers[number].astype(narrow).view(dtype)
        if isinstance(operand, Immediate):
            if kind == "pred":
                value = np.array([operand.bits != 0])
            else:
                value = np.array([operand.bits], np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
            return lambda warp: value
        if isinstance(operand, Symbol):
            return self._special(operand.name, dtype)
        raise Unknown(f"operand {operand}")

    def _special(self, name: str, dtype):
        if name == "%tid.x":
            return lambda warp: warp.lanes.view(dtype)
        if name in ("%ctaid.x", "%nctaid.x"):
            part = (lambda p: p.number) if name == "%ctaid.x" else (lambda p: p.launch.programs)
            return lambda warp: np.array([part(warp.program)], dtype)
        if name == "global_smem":
            value = np.array([BASE], dtype)
        elif name in self.kernel.parameters:
            value = np.array([PARAMETERS + self.kernel.parameters[name][0]], dtype)
        else:
            raise Unknown(f"operand {name}")
        return lambda warp: value

    def write(self, operand, kind: str):
        """function (warp, value of `kind`, mask)."""
        if operand == Symbol("_"):
            return lambda warp, value, mask: None
        number, width = operand.number, operand.width
        dtype = np.dtype(TYPES[kind])
        if width == 1:
            stored = np.dtype(np.bool_)
        else:
            stored = np.dtype(f"u{width // 8}")
            if stored.itemsize < dtype.itemsize:
                raise Unknown(f"{kind} written to a register of {width} bits")
        wider = np.dtype(f"{dtype.kind}{stored.itemsize}") if stored.itemsize > dtype.itemsize else None

        def write(warp, value, mask):
            value = np.asarray(value).astype(dtype, copy=False)
            if wider is not None:
                value = value.astype(wider)
            value = value.view(stored)
            if mask is not None:
                warp.registers[number] = np.where(mask, value, warp.registers[number])
            elif value.shape == (32,):
                warp.registers[number] = value
            else:
                warp.registers[number] = np.full(32, value.ravel()[0], stored)

        return write

    def address(self, operand: Address, kind: str):
        """function of a warp -> (32,) int64."""
        read, offset = self.read(operand.base, kind), operand.offset
        return lambda warp: np.broadcast_to(read(warp).astype(np.int64) + offset, 32)

    def uniform(self, operand, kind: str):
        """function (warp, mask) -> a number: of the one lane that is active."""
        read = self.read(operand, kind)

        def one(warp, mask):
            values = np.broadcast_to(read(warp), 32)
            return int(values[0 if mask is None else np.flatnonzero(mask)[0]])

        return one
