"""What the first process shows while training: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmpeft.training import memory

EVERY = 10.0
"""Seconds between two plain lines about steps."""


class ProgressDisplay:
    """Shows the step, loss, learning rate, steps per second, memory and remaining time; nothing unless ``shown``."""

    def __init__(self, total: int, done: int, *, shown: bool, console: Console | None = None) -> None:
        self.total, self.first, self.shown = total, done, shown
        self.console = console or Console()
        self.started = self.said = monotonic()
        text = TextColumn("{task.fields[numbers]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, disable=not (shown and self.console.is_terminal))
        self.task = self.bar.add_task("training", total=total, completed=done, numbers="")

    def __enter__(self) -> ProgressDisplay:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, step: int, epoch: int, loss: float, lr: float) -> None:
        """Show the numbers of a step."""
        if not self.shown:
            return
        now = monotonic()
        speed = (step - self.first) / max(now - self.started, 1e-9)
        numbers = f"loss {loss:.4f}  lr {lr:.2e}  {speed:.1f} it/s  {memory.peak_bytes() / 2**20:,.0f} MiB"
        self.bar.update(self.task, completed=step, description=f"epoch {epoch + 1}", numbers=numbers)
        if not self.console.is_terminal and now - self.said > EVERY:
            self.said = now
            remaining = (self.total - step) / speed
            self.say(f"epoch {epoch + 1}  step {step}/{self.total}  {numbers}  {remaining:.0f} s left")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.shown:
            self.bar.console.print(line, highlight=False, soft_wrap=True, markup=False)
