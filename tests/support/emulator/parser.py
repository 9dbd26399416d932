"""PTX text -> a list of instructions with their operands, labels resolved."""

import re
from dataclasses import dataclass, field

WIDTHS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16}
WIDTHS |= {"b32": 32, "u32": 32, "s32": 32, "f32": 32, "b64": 64, "u64": 64, "s64": 64, "f64": 64}


@dataclass(frozen=True)
class Register:
    number: int
    width: int  # bits; 1: a predicate


@dataclass(frozen=True)
class Immediate:
    bits: int  # two's complement in 64 bits, or the bits of a float


@dataclass(frozen=True)
class Symbol:
    """A parameter, shared memory, a special register, or `_`."""

    name: str


@dataclass(frozen=True)
class Address:
    base: "Operand"
    offset: int = 0
    coordinates: "tuple[Operand, ...]" = ()  # of a tensor map


@dataclass(frozen=True)
class Vector:
    parts: "tuple[Operand, ...]"


Operand = Register | Immediate | Symbol | Address | Vector


@dataclass
class Instruction:
    opcode: list[str]  # split at the dots
    operands: list[Operand]
    text: str
    source: str  # "forward.py:42"
    guard: Register | None = None
    negated: bool = False
    target: int = -1  # of a branch


@dataclass
class Kernel:
    name: str
    threads: int
    parameters: dict[str, tuple[int, int]]  # name -> (offset, bytes)
    parameter_bytes: int
    registers: list[int] = field(default_factory=list)  # width of each
    instructions: list[Instruction] = field(default_factory=list)


def parse(text: str) -> Kernel:
    """The one kernel of a PTX module."""
    head = re.search(r"\.visible \.entry (\w+)\((.*?)\)(.*?)\{", text, re.DOTALL)
    parameters, end = {}, 0
    for line in head[2].split(","):
        declared = re.search(r"\.param (?:\.align (\d+) )?\.(\w+)(?:.*?) (\w+)(?:\[(\d+)\])?\s*$", line.strip())
        size = WIDTHS[declared[2]] // 8 * int(declared[4] or 1)
        align = int(declared[1] or size)
        start = -(-end // align) * align
        parameters[declared[3]] = start, size
        end = start + size
    threads = int(re.search(r"\.reqntid (\d+)", head[3])[1])
    kernel = Kernel(head[1], threads, parameters, end)
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.MULTILINE))
    _Body(kernel, files).read(text[head.end() :])
    return kernel


class _Body:
    def __init__(self, kernel: Kernel, files: dict[str, str]):
        self.kernel, self.files = kernel, files
        self.scopes: list[dict[str, Register]] = [{}]
        self.scope_names = [""]
        self.labels: dict[str, int] = {}
        self.branches: list[tuple[Instruction, list[str]]] = []
        self.source = "?"

    def read(self, text: str) -> None:
        for statement in self._statements(text):
            if statement.startswith(".reg"):
                self._declare(statement)
            elif not statement.startswith("."):
                self._instruction(statement)
        for instruction, candidates in self.branches:
            instruction.target = next(self.labels[name] for name in candidates if name in self.labels)

    def _statements(self, text: str):
        """Statements in order; keeps account of scopes, labels and source lines on the way."""
        pending, opened = "", 0
        for line in text.splitlines():
            line = line.split("//")[0].strip()
            if line.startswith(".loc"):
                _, file, row, *_ = line.split()
                self.source = f"{self.files.get(file, '?')}:{row}"
                continue
            while line:
                if not pending:
                    if line[0] == "{":
                        opened += 1
                        self.scopes.append({})
                        self.scope_names.append(f"{self.scope_names[-1]}/{opened}")
                        line = line[1:].strip()
                        continue
                    if line[0] == "}":
                        if len(self.scopes) == 1:
                            return
                        self.scopes.pop()
                        self.scope_names.pop()
                        line = line[1:].strip()
                        continue
                    label = re.match(r"([$\w]+):(?!:)\s*", line)
                    if label:
                        self.labels[f"{self.scope_names[-1]}:{label[1]}"] = len(self.kernel.instructions)
                        line = line[label.end() :]
                        continue
                before, end, line = line.partition(";")
                pending = f"{pending} {before}".strip()
                line = line.strip()
                if end:
                    yield pending
                    pending = ""

    def _declare(self, statement: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement).groups()
        for name in names.split(","):
            prefix, count = re.match(r"\s*([%\w]+?)(?:<(\d+)>)?\s*$", name).groups()
            for i in range(int(count) if count else 1):
                self.scopes[-1][f"{prefix}{i}" if count else prefix] = self._register(WIDTHS[kind])

    def _register(self, width: int) -> Register:
        self.kernel.registers.append(width)
        return Register(len(self.kernel.registers) - 1, width)

    def _instruction(self, statement: str) -> None:
        negated, guard, opcode, rest = re.match(
            r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", statement, re.DOTALL
        ).groups()
        parts = opcode.split(".")
        instruction = Instruction(parts, [], statement, self.source)
        if guard:
            instruction.guard, instruction.negated = self._operand(guard), negated == "!"
        if parts[0] == "bra":
            name = rest.strip()
            scope = self.scope_names[-1].split("/")
            candidates = [f"{'/'.join(scope[:n])}:{name}" for n in range(len(scope), 0, -1)]
            self.branches.append((instruction, candidates))
        else:
            instruction.operands = [self._operand(text) for text in _split(rest)]
        self.kernel.instructions.append(instruction)

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        if text.startswith("{"):
            return Vector(tuple(map(self._operand, _split(text[1:-1]))))
        if text.startswith("["):
            base, *coordinates = _split(text[1:-1])
            base, _, offset = base.partition("+")
            parts = self._operand(coordinates[0]).parts if coordinates else ()
            return Address(self._operand(base), int(offset or 0), parts)
        if "|" in text:
            return Vector(tuple(map(self._operand, text.split("|"))))
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
            return Immediate(int(text[2:], 16))
        if re.match(r"-?(0x[0-9a-fA-F]+|\d+)U?$", text):
            return Immediate(int(text.rstrip("U"), 0) & (2**64 - 1))
        return Symbol(text)


def _split(text: str) -> list[str]:
    """At the commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
