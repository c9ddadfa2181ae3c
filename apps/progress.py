"""Progress of long jobs: a bar on a terminal, lines when piped, nothing in the helpers of a multi-process run."""

import os
import sys
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from genaim.core.progress import Progress as ProgressProtocol
from genaim.core.progress import StreamProgress


def make_progress(stream: TextIO | None = None) -> ProgressProtocol:
    """The right progress for where ``stream`` (standard output when None) goes."""
    stream = stream or sys.stdout
    if int(os.environ.get("RANK", "0")) > 0:
        return NoProgress()
    return RichProgress(stream) if stream.isatty() else StreamProgress(stream)


class RichProgress:
    """A bar with the latest figures and the time left."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, what: str, done: int, total: int) -> None:
        """Shows a new bar; one that still runs is closed."""
        self.stop()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),  # short: the ^C that a terminal echoes must not wrap the line
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
        )
        self._task = self._bar.add_task(what, completed=done, total=total, figures="")
        self._bar.start()

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=figures_text(figures))

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class NoProgress:
    """Says nothing: the first process speaks for all."""

    def start(self, what: str, done: int, total: int) -> None:
        """Ignored."""

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""

    def stop(self) -> None:
        """Ignored."""


def figures_text(figures: Mapping[str, float]) -> str:
    """``loss 1.234  images/s 56.7``."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
