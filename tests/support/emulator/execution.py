"""Warps that run instruction by instruction, the programs they belong to, and a launch: all of it in a random order."""

import random

import numpy as np

from .copies import Copies
from .device_memory import DeviceMemory, Unpublished
from .fault import Fault
from .shared import Shared

READY, AT_BARRIER, DONE = range(3)
STATES = {"barrier": AT_BARRIER, "end": DONE}  # after an instruction that says so
LOOKS_IN_VAIN = 5_000  # after which programs count as waiting for ever


class Warp:
    """32 lanes that stay together: Triton's control flow is the program's; a lane is left out by a guard alone."""

    def __init__(self, program: "Program", number: int):
        self.program, self.number = program, number
        self.code = program.code
        self.lanes = np.arange(32 * number, 32 * number + 32, dtype=np.uint32)
        kinds = {1: np.zeros(32, np.bool_)}
        kinds |= {bits: np.full(32, 0xAA, f"u{bits // 8}") for bits in (8, 16, 32, 64)}
        self.registers = [kinds[width] for width in program.kernel.registers]
        self.pc = 0
        self.epoch = 0
        self.state = READY
        self.products: list[tuple[list, set]] = [([], set())]  # by group: (cells read, accumulators); the last is open
        self.busy: frozenset[int] = frozenset()  # accumulators of products that are under way
        self.copies: list[list] = [[]]  # cells that cp.async fills, by group; the last is open
        self.stores: list[list] = [[]]  # cells that bulk stores read, likewise

    def run(self, instructions: int) -> bool:
        """Until it has to wait, or `instructions` later. False if it only looked whether it can go on, in vain."""
        for _ in range(instructions):
            step = self.code[self.pc]
            mask = None
            if step.guard is not None:
                mask = ~self.registers[step.guard] if step.negated else self.registers[step.guard]
                if not mask.any():
                    self.pc += 1
                    continue
                mask = None if mask.all() else mask
            if step.target >= 0:
                if mask is not None:
                    raise Fault("the warp's lanes diverge")
                self.pc = step.target
                continue
            if step.opcode[0] != "wgmma" and not self.busy.isdisjoint(step.touches):
                raise Fault("uses an accumulator of a matrix product that is under way")
            outcome = step.run(self, mask)
            self.pc += 1
            if outcome is None:
                continue
            if outcome in STATES:
                self.state = STATES[outcome]
            return outcome != "in vain"
        return True

    def see_products(self) -> None:
        self.busy = frozenset().union(*(accumulators for _, accumulators in self.products))

    def passed_barrier(self) -> None:
        self.epoch += 1
        self.state = READY


class Program:
    """One block of threads."""

    def __init__(self, launch: "Launch", number: int):
        self.launch, self.number = launch, number
        self.kernel, self.code = launch.kernel, launch.code
        self.shared = Shared(launch.shared_bytes)
        self.copies = Copies(self.shared, launch.memory)
        self.unpublished = Unpublished(launch.memory, self.kernel.threads // 32)
        self.warps = [Warp(self, i) for i in range(self.kernel.threads // 32)]

    def settle(self) -> None:
        """Opens the barrier that every warp has come to, and ends what is done."""
        states = {warp.state for warp in self.warps}
        if states == {AT_BARRIER}:
            self.unpublished.barrier()
            for warp in self.warps:
                warp.passed_barrier()
        elif states == {DONE}:
            self.unpublished.end()
            if self.copies.on_the_way or self.shared.under_read.any() or self.shared.incoming.any():
                raise Fault("the program ends while copies or products are under way in its shared memory")
        elif READY not in states:
            raise Fault("some warps have ended, others wait for them at a barrier")

    @property
    def done(self) -> bool:
        return all(warp.state == DONE for warp in self.warps)


class Launch:
    """The programs of a launch."""

    def __init__(self, kernel, code, shared_bytes: int, memory: DeviceMemory, parameters: bytes, maps: dict, seed: int):
        self.kernel, self.code, self.shared_bytes, self.memory = kernel, code, shared_bytes, memory
        self.parameters, self.maps = np.frombuffer(parameters, np.uint8), maps
        self.programs = 0
        self.chance = random.Random(seed)

    def run(self, programs: int, resident: int, last: int) -> None:
        """The last ones of `programs`; `resident` of them side by side, and a next one begins when one ends."""
        self.programs = programs
        waiting = list(range(max(programs - last, 0), programs))[::-1]
        running = []
        in_vain, changes = 0, 0
        with np.errstate(all="ignore"):
            while waiting or running:
                while waiting and len(running) < resident:
                    running.append(Program(self, waiting.pop()))
                program = self.chance.choice(running)
                in_vain += not self._turn(program)
                if changes != self.memory.changes:
                    in_vain, changes = 0, self.memory.changes
                if in_vain > LOOKS_IN_VAIN:
                    raise Fault(f"{self.kernel.name}: every program waits")
                if program.done:
                    running.remove(program)

    def _turn(self, program: Program) -> bool:
        """One warp runs for a while; a bulk load may arrive. False if the warp only looked, in vain."""
        warp = self.chance.choice([warp for warp in program.warps if warp.state == READY])
        if program.copies.on_the_way and self.chance.random() < 0.3:
            program.copies.land(self.chance.randrange(len(program.copies.on_the_way)))
        try:
            went_on = warp.run(self.chance.choice((10, 100, 1000)))
            program.settle()
        except Fault as fault:
            step = self.code[min(warp.pc, len(self.code) - 1)]
            place = f"{self.kernel.name}, program {program.number}, warp {warp.number}, {step.source}"
            raise Fault(f"{place}: {fault}\n    {step.text[:200]}") from None
        return went_on
