"""Plots of measurements, by Matplotlib where it is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genaim.files import file_written_whole


def need_matplotlib() -> None:
    """Finds out whether plots can be drawn, before anything is measured.

    Raises:
        ValueError: If Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("plots need Matplotlib, which is not installed; run: pip install 'genaim[eval]'")


def new_figure(width: float, height: float) -> Any:
    """An empty Matplotlib figure of so many inches, which belongs to no window."""
    need_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, file: Path) -> None:
    """Writes a figure in the format of the file's ending, whole or not at all."""
    with file_written_whole(file) as temporary:
        figure.savefig(temporary, dpi=110)
