"""The one error of the emulator."""


class Fault(Exception):
    """What the program did wrong; the emulator adds the instruction and where it stands in the kernel's source."""
