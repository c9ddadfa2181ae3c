"""Small data sets on disk: every format holds the same colours and labels."""

import sys
from pathlib import Path

import pytest

from genaim.config import data_root

sys.path.insert(0, str(Path(__file__).parent))  # small_data, in every import mode of pytest
from small_data import COLORS, png


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Twenty images without labels; the red level of image i is 10 * i."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02d}.png").write_bytes(png((10 * i, 0, 0)))
    return folder


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two class folders of three images each, below a split folder."""
    folder = tmp_path / "classes"
    for i, color in enumerate(COLORS):
        file = folder / "train" / ("cat" if i < 3 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(color))
    return folder


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the Arrow copies of the ``datasets`` library out of the home folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def shared_data() -> Path:
    """The folder of development data, or a skip."""
    root = data_root()
    if root is None or not root.is_dir():
        pytest.skip("GENAIM_DATA not found: set it to the folder of development data.")
    return root
