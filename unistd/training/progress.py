"""What a person sees while a run trains: a live table on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
TREND = 24  # characters of the trend line of a whole run


class TrainingProgress:
    """Shows step, epoch, loss per task, ranks, samples/s and time left.

    Args:
        steps: steps of the whole run; `done` of them lie behind.
        epoch_steps: steps of an epoch.
        baselines: MSE of repeating the last frame, per task; losses are shown beside it.
    """

    def __init__(self, console: Console, steps: int, done: int, epoch_steps: int, baselines: dict[str, float]) -> None:
        self.console, self.steps, self.epoch_steps, self.baselines = console, steps, epoch_steps, baselines
        self._smooth: dict[str, float] = {}
        self._trends: dict[str, list[float]] = {task: [] for task in baselines}
        self._bar = Progress(
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("train", total=steps, completed=done, phase="starting", speed="")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, auto_refresh=True)

    def __enter__(self) -> TrainingProgress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def advance(self, step: int) -> None:
        """Shows that `step` steps are done, of which nothing else is known yet."""
        self._bar.update(self._task, completed=step)

    def losses(self, step: int, losses: dict[str, float]) -> None:
        """Takes in the tasks' MSE of a step."""
        for task, loss in losses.items():
            old = self._smooth.get(task, loss)
            self._smooth[task] = 0.9 * old + 0.1 * loss
            if step % max(1, self.steps // TREND) == 0:
                self._trends[task].append(self._smooth[task])

    def show(self, step: int, ranks: str, samples_per_second: float) -> None:
        """Shows the state after `step` steps, whose losses were taken in."""
        epoch = min(-(-step // self.epoch_steps), self.steps // self.epoch_steps)
        speed = f"{samples_per_second:.0f} samples/s"
        phase = f"epoch {epoch}/{self.steps // self.epoch_steps} · {ranks}"
        self._bar.update(self._task, completed=step, phase=phase, speed=speed)
        if not self.console.is_terminal and step % self.epoch_steps == 0:
            left = self._bar.tasks[0].time_remaining
            shares = [self._share(task) for task in self._smooth]
            error = f"{math.fsum(shares) / len(shares):.2f}" if shares else "-"  # nothing was measured so far
            self.console.print(
                f"{phase} · step {step}/{self.steps} · error {error} of repeat-last"
                f" · {speed} · {'?' if left is None else f'{left:.0f} s'} left",
                highlight=False,
            )

    def _share(self, task: str) -> float:
        return self._smooth[task] / self.baselines[task]

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        table.add_column("task")
        table.add_column("loss (MSE)", justify="right")
        table.add_column("of repeat-last", justify="right")
        table.add_column("trend")
        for task in self.baselines:
            if task in self._smooth:
                share = self._share(task)
                colour = "green" if share < 1 else "yellow"
                table.add_row(
                    task,
                    f"{self._smooth[task]:.5f}",
                    Text(f"{share:.2f}", style=colour),
                    Text(sparkline(self._trends[task]), style="cyan"),
                )
        return Group(self._bar, table)


def sparkline(values: Sequence[float]) -> str:
    """Block characters whose heights follow `values` on a logarithmic scale."""
    logs = [math.log(max(value, 1e-12)) for value in values]
    if not logs:
        return ""
    low, span = min(logs), max(max(logs) - min(logs), 1e-12)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in logs)
