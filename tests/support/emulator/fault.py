"""The errors of the emulator: the program's, and its own."""


class Fault(Exception):
    """What the program did wrong; the emulator adds the instruction and where it stands in the kernel's source."""


class Unknown(NotImplementedError):
    """An instruction, or a form of one, that the emulator does not know: it refuses rather than guesses."""
