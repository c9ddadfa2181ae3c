"""Held-out emoji, on which models are judged, and what the tables call the models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

EMOJI_SIDE = 64


def held_out_emoji(root: Path, count: int) -> tuple["Tensor", "Tensor"]:
    """Emoji of 64x64 pixels on white, evenly over the test split.

    Args:
        root: Folder that has noto_emoji.
        count: How many.

    Returns:
        Images (n, 3, 64, 64) in [-1, 1] and labels (n,) int64.

    Raises:
        ValueError: If there are not so many.
    """
    from genaim.data import DataConfig, ImageDataset, build_dataset
    from genaim.data.dataset import collate
    from genaim.evaluation.image_sets import evenly

    source: Any = {"path": str(root / "noto_emoji"), "format": "parquet", "split": "test"}
    data = build_dataset(DataConfig(train=source, val=source, image_size=EMOJI_SIDE), "val")
    assert isinstance(data, ImageDataset)
    if not 1 <= count <= len(data):
        raise ValueError(f"-n is {count}; it must be in 1 to {len(data)}, the emoji of the test split.")
    batch = collate([data.sample(index, (0,)) for index in evenly(range(len(data)), count)])
    assert batch.images is not None  # in place of a file that cannot be read comes the next one
    return batch.images, batch.labels


def row_names(models: Sequence[str]) -> dict[str, str]:
    """What a table calls each model: the last part of its path, or the whole where several share that."""
    last = {model: Path(model).name for model in models}
    return {model: name if list(last.values()).count(name) == 1 else model for model, name in last.items()}
