"""How a long job tells what it does; the terminal's bar lives in the applications."""

import time
from collections.abc import Mapping
from typing import Protocol, TextIO


class Progress(Protocol):
    """Receives the course of a long job."""

    def start(self, what: str, done: int, total: int) -> None:
        """A job begins, of which ``done`` of ``total`` are finished already."""
        ...

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        """So much is finished now, with the latest figures."""
        ...

    def say(self, text: str) -> None:
        """A line for the reader."""
        ...

    def stop(self) -> None:
        """The job ends."""
        ...


class LineProgress:
    """Plain lines, at most one every ``seconds``, for pipes, logs and tests."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._what, self._first, self._total = "", 0, 0
        self._began = self._last = time.monotonic()

    def start(self, what: str, done: int, total: int) -> None:
        """Remembers the job."""
        self._what, self._first, self._total = what, done, total
        self._began = self._last = time.monotonic()

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        """Prints a line when the last is old enough, and at the end."""
        now = time.monotonic()
        if now - self._last < self.seconds and done < self._total:
            return
        self._last = now
        left = (now - self._began) / max(done - self._first, 1) * (self._total - done)
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.say(f"{self._what} {done}/{self._total}  {text}  {duration(left)} left")

    def say(self, text: str) -> None:
        """Prints at once, so that a log can be followed."""
        print(text, flush=True)

    def stop(self) -> None:
        """Nothing to close."""


class StreamProgress(LineProgress):
    """Plain lines to any stream."""

    def __init__(self, stream: TextIO, seconds: float = 10.0) -> None:
        super().__init__(seconds)
        self.stream = stream

    def say(self, text: str) -> None:
        """Prints at once, so that a log can be followed."""
        print(text, file=self.stream, flush=True)


class SilentProgress(LineProgress):
    """Says nothing; for all processes but the first."""

    def say(self, text: str) -> None:
        """Drops the line."""


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
