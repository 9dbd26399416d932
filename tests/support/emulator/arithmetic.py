"""What the instructions do that only compute: functions of numpy arrays, one entry a lane."""

import numpy as np

TYPES = {
    "pred": np.bool_, "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16,
    "s16": np.int16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64,
    "s64": np.int64, "f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
LANES = np.arange(32)
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
WIDER = {2: {"u": np.uint32, "s": np.int32}, 4: {"u": np.uint64, "s": np.int64}}


def to_bfloat16(value):
    """float32 -> the bits of the nearest bfloat16, ties to even."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bits16(value, kind: str):
    """float32 -> the 16 bits of it in `kind`, f16 or bf16."""
    return to_bfloat16(value) if kind == "bf16" else value.astype(np.float16).view(np.uint16)


def from_bits16(bits, kind: str):
    return from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def computation(opcode: list[str]):
    """(function, kinds of its arguments, kind of its result) of an instruction that only computes; None of another.

    opcode: split at the dots, the type last.
    """
    name, kind = opcode[0], opcode[-1]
    if name in _ONE_OPERAND:
        return _ONE_OPERAND[name], (kind,), "u32" if name == "popc" else kind
    if name in ("add", "sub", "rem", "and", "or", "xor", "min", "max"):
        function = _two_operands(name, opcode)
        if kind in ("s16x2", "u16x2"):
            return _by_halves(function, TYPES[kind[:-2]]), ("b32", "b32"), "b32"
        return function, (kind, kind), kind
    if name in ("shl", "shr"):
        return (_shift_left if name == "shl" else _shift_right), (kind, "u32"), kind
    if name in ("mul", "mad", "fma"):
        return _product(name, opcode, kind)
    if name == "div":
        return (np.divide if kind == "f32" else _truncated_quotient), (kind, kind), kind
    if name == "bfe":
        return _extract, (kind, "u32", "u32"), kind
    if name == "selp":
        return (lambda a, b, p: np.where(p, a, b)), (kind, kind, "pred"), kind
    if name == "setp":
        return COMPARISONS[opcode[1]], (kind, kind), "pred"
    if name == "cvt":
        return _conversion(opcode)
    return None


_ONE_OPERAND = {"not": np.invert, "neg": np.negative, "ex2": np.exp2, "popc": np.bitwise_count}


def _two_operands(name: str, opcode: list[str]):
    floating = opcode[-1].startswith("f")
    if name in ("min", "max") and floating and "NaN" not in opcode:
        return {"min": np.fmin, "max": np.fmax}[name]
    return {
        "add": np.add, "sub": np.subtract, "rem": np.fmod, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }[name]  # fmt: skip


def _by_halves(function, dtype):
    def both(a, b):
        a, b = (np.ascontiguousarray(one) for one in np.broadcast_arrays(a, b))
        return function(a.view(dtype), b.view(dtype)).view(np.uint32)

    return both


def _shift_left(a, by):
    bits = a.dtype.itemsize * 8
    return np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), a.dtype.type(0))


def _shift_right(a, by):
    """Arithmetic for signed types; what is shifted out entirely leaves the sign."""
    bits = a.dtype.itemsize * 8
    half = np.minimum(by, bits - 1).astype(a.dtype)
    beyond = a >> a.dtype.type(bits - 1) if a.dtype.kind == "i" else a.dtype.type(0)
    return np.where(by < bits, a >> half, beyond)


def _product(name: str, opcode: list[str], kind: str):
    size = np.dtype(TYPES[kind]).itemsize
    if kind == "f32":
        if name == "mul":
            return np.multiply, (kind, kind), kind
        return (lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32)), (kind,) * 3, kind
    if "lo" in opcode:
        if name == "mul":
            return np.multiply, (kind, kind), kind
        return (lambda a, b, c: a * b + c), (kind,) * 3, kind
    wide = WIDER[size][kind[0]]
    if "hi" in opcode:
        narrow = TYPES[kind]
        return (lambda a, b: (a.astype(wide) * b.astype(wide) >> wide(size * 8)).astype(narrow)), (kind, kind), kind
    result = f"{kind[0]}{size * 16}"
    if name == "mul":
        return (lambda a, b: a.astype(wide) * b.astype(wide)), (kind, kind), result
    return (lambda a, b, c: a.astype(wide) * b.astype(wide) + c), (kind, kind, result), result


def _truncated_quotient(a, b):
    return (np.sign(a) * np.sign(b) * (abs(a) // abs(b))).astype(a.dtype) if a.dtype.kind == "i" else a // b


def _extract(a, first, length):
    """Bits first .. first + length - 1, extended by the sign of a signed type."""
    bits = a.dtype.itemsize * 8
    length = np.minimum(length, bits - np.minimum(first, bits)).astype(a.dtype)
    up = (a.dtype.type(bits) - length - first.astype(a.dtype)).astype(a.dtype)
    return (a << up) >> (a.dtype.type(bits) - length)


def _conversion(opcode: list[str]):
    to, source = opcode[-2:]
    if to in ("bf16x2", "f16x2"):
        kind = to[:-2]

        def pack(high, low):
            high, low = np.broadcast_arrays(to_bits16(high, kind), to_bits16(low, kind))
            return high.astype(np.uint32) << np.uint32(16) | low

        return pack, ("f32", "f32"), "b32"
    if to in ("bf16", "f16"):
        return (lambda a: to_bits16(a.astype(np.float32), to)), (source,), "b16"
    if source in ("bf16", "f16"):
        return (lambda a: from_bits16(a, source).astype(TYPES[to])), ("b16",), to
    if source == "f32":
        return (np.floor, (source,), to) if to == "f32" and "rmi" in opcode else None
    return (lambda a: a.astype(TYPES[to])), (source,), to
