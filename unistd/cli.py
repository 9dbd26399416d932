"""The command `unistd`: how it starts and how it ends. What it does is in `commands`, which takes seconds to import."""

from __future__ import annotations

import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from unistd.interrupts import Interrupts, ignore_stops, say
from unistd.output import OutputLost, StandardOutput, open_standard_streams

if TYPE_CHECKING:
    from unistd.training.processes import Processes
    from unistd.training.watch import Watch


SHARED = ("train", "evaluate")  # commands that several processes do together


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 after an error, 128 + signal after a stop.

    What ends it is one line on standard error. A broken pipe counts as the signal SIGPIPE, and needs no line unless a
    training ends with it. One of several processes, of which the first prints and one says why they end, does not
    return: it ends here.
    """
    open_standard_streams()
    with Interrupts() as interrupts:
        from unistd.training.processes import Processes, leave

        processes = Processes.of_environment()
        if processes.world == 1:
            return _run(arguments, interrupts, processes, None)

        from unistd.training.watch import Watch

        with Watch(processes) as watch:
            try:
                status = _run(arguments, interrupts, processes, watch)
            except SystemExit as usage:
                status = usage.code
            except BaseException:
                traceback.print_exc()
                status = 1
    leave(status)


def _run(arguments: Sequence[str] | None, interrupts: Interrupts, processes: Processes, watch: Watch | None) -> int:
    """The command, and the one line that says why it ends."""
    from rich.console import Console

    from unistd.commands import USER_ERRORS, parse
    from unistd.training.stop import Stopped

    def end(line: str) -> None:
        if watch is None or watch.blame(line):
            say(line)

    interrupts.raises = True
    options = Namespace(command=None)
    output = StandardOutput(sys.stdout)
    try:
        with redirect_stdout(output):
            with nullcontext() if processes.first else redirect_stderr(None):
                options = parse(arguments)
            if processes.world > 1 and options.command not in SHARED:
                raise ValueError(
                    f"{options.command} takes one process, {processes.world} were started: leave torchrun out"
                )
            console = Console(file=output, quiet=not processes.first)
            wide = console.is_terminal or not processes.first
            status = options.run_command(options, console if wide else Console(file=output, width=120))
            output.flush()
            return status or 0
    except Stopped as stop:
        end(f"{stop}; `--resume` continues")
        return 1 if stop.signum is None else 128 + stop.signum
    except OutputLost as lost:
        line = f"error: {lost}{_continues(options)}"
        if lost.signum is None or options.command == "train":
            end(line)
        elif watch is not None:
            watch.blame(line)  # the others end without a word as well
        return lost.status
    except BaseException as error:
        if interrupts.signum is not None:  # which some libraries turn into errors of their own
            end(f"stopped by {interrupts.name}{_continues(options)}")
            return 128 + interrupts.signum
        if isinstance(error, USER_ERRORS):
            end(f"error: {str(error) or type(error).__name__}")
            return 1
        if watch is not None and _left_alone(error, watch, options):
            return 1
        raise


def _left_alone(error: BaseException, watch: Watch, options: Namespace) -> bool:
    """Whether an error comes of another process that is gone, or has said what went wrong; the first is said here."""
    from unistd.training.watch import gone

    if isinstance(error, RuntimeError):  # as torch's of a message that cannot be sent
        ignore_stops()  # the program that started this one may be quick to end it, before it has said why
        if missing := watch.missing():
            line = f"error: {gone(missing, watch.processes.world)}{_continues(options)}"
            if watch.blame(line):
                say(line)
            return True
    return not watch.blame(f"{type(error).__name__}: {error}")


def _continues(options: Namespace) -> str:
    return "; `--resume` continues" if options.command == "train" else ""
