"""The command `unistd`: how it starts and how it ends. What it does is in `commands`, which takes seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 after an error, 128 + signal after a stop."""
    from rich.console import Console

    from unistd.commands import USER_ERRORS, parse
    from unistd.training.stop import Stopped

    options = parse(arguments)
    try:
        console = Console()
        options.run_command(options, console if console.is_terminal else Console(width=120))
    except Stopped as stop:
        print(f"unistd: {stop}; `--resume` continues", file=sys.stderr)
        return 128 + stop.signum
    except USER_ERRORS as error:
        print(f"unistd: error: {error}", file=sys.stderr)
        return 1
    return 0
