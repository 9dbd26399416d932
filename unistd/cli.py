"""The command `unistd`: how it starts and how it ends. What it does is in `commands`, which takes seconds to import."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout

from unistd.interrupts import Interrupts, say
from unistd.output import OutputLost, StandardOutput, open_standard_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 after an error, 128 + signal after a stop.

    What ends it is one line on standard error. A broken pipe counts as the signal SIGPIPE, and needs no line unless a
    training ends with it.
    """
    open_standard_streams()
    with Interrupts() as interrupts:
        from rich.console import Console

        from unistd.commands import USER_ERRORS, parse
        from unistd.training.stop import Stopped

        interrupts.raises = True
        options = Namespace(command=None)
        output = StandardOutput(sys.stdout)
        try:
            with redirect_stdout(output):
                options = parse(arguments)
                console = Console(file=output)
                options.run_command(options, console if console.is_terminal else Console(file=output, width=120))
                output.flush()
        except Stopped as stop:
            say(f"{stop}; `--resume` continues")
            return 1 if stop.signum is None else 128 + stop.signum
        except OutputLost as lost:
            if lost.signum is None or options.command == "train":
                say(f"error: {lost}{_continues(options)}")
            return lost.status
        except BaseException as error:
            if interrupts.signum is not None:  # which some libraries turn into errors of their own
                say(f"stopped by {interrupts.name}{_continues(options)}")
                return 128 + interrupts.signum
            if not isinstance(error, USER_ERRORS):
                raise
            say(f"error: {str(error) or type(error).__name__}")
            return 1
    return 0


def _continues(options: Namespace) -> str:
    return "; `--resume` continues" if options.command == "train" else ""
