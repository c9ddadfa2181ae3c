"""A bar on a terminal, lines when piped, one voice of several processes."""

import io

import pytest

from apps.progress import NoProgress, RichProgress, StreamProgress, make_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_chooses_by_the_stream_and_the_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert isinstance(make_progress(Terminal()), RichProgress)
    assert isinstance(make_progress(io.StringIO()), StreamProgress)
    monkeypatch.setenv("RANK", "1")
    assert isinstance(make_progress(Terminal()), NoProgress)


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_tells_figures_and_lines(monkeypatch, stream):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("RANK", raising=False)
    progress = make_progress(stream)
    progress.start("emoji", 2, 4)
    progress.advance(4, {"loss": 1.23456, "images/s": 78.9})
    progress.say("a line with [brackets]")
    progress.stop()
    progress.stop()
    progress.advance(4, {})
    for text in ("emoji", "4/4", "loss 1.235", "images/s 78.9", "left", "a line with [brackets]"):
        assert text in stream.getvalue()
