"""The web demo, served to tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from apps.demo_models import Models


@contextmanager
def served(names: list[str], folder: Path) -> Iterator[Any]:
    """The page of a server with these models on this machine, keeping its files in a folder."""
    import gradio

    from apps.demo import start

    folder.mkdir()
    page = start(Models(names, torch.device("cpu")), str(folder))
    assert isinstance(page, gradio.Blocks)
    try:
        yield page
    finally:
        page.jobs.close()
        page.close()
