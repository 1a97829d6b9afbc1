"""What a person sees of a run: a bar with loss, tokens/s and time left; plain lines without a terminal."""

import sys
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0


class ProgressBar:
    """Follows a loop of `total` steps; `unit` is what `per_second` counts. Written to standard error."""

    def __init__(
        self,
        name: str,
        total: int,
        start: int = 0,
        unit: str = "tokens",
        clock: Callable[[], float] = time.monotonic,
        is_shown: bool = True,
    ) -> None:
        self.name, self.total, self.start, self.unit, self.clock = name, total, start, unit, clock
        self.console = Console(file=sys.stderr, quiet=not is_shown)
        self.began = self.last_line = clock()
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=total, completed=start, status="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, step: int, per_second: float, **values: float) -> None:
        """Shows where the loop is; a plain line at most every few seconds, and for the last step."""
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        status = f"{numbers}  {per_second:,.0f} {self.unit}/s".strip()
        self.bar.update(self.task, completed=step, status=status)
        now = self.clock()
        if self.console.is_terminal or (now - self.last_line < LINE_EVERY_S and step < self.total):
            return
        self.last_line = now
        done = max(step - self.start, 1)
        left = (now - self.began) / done * (self.total - step)
        self.console.print(
            f"{self.name} {step}/{self.total}  {status}  {_duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    def update_counts(self, step: int, count: int) -> None:
        """The same for a loop that counts its units from the start of the bar."""
        self.update(step, count / max(self.clock() - self.began, 1e-9))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
