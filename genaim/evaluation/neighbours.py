"""Memory or new: nearest training images of generated ones, and exact repetitions among them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor


class Neighbours(NamedTuple):
    """The k nearest candidates of every image, nearest first."""

    distances: Tensor
    """Root of the mean squared difference of all RGB values, in 8-bit levels (0 to 255), (M, k) float32."""
    images: Tensor
    """The candidates, mirrored where that is nearer, (M, k, 3, H, W)."""


def nearest_neighbours(images: Tensor, candidates: Iterable[Tensor], k: int, *, mirrored: bool = False) -> Neighbours:
    """The candidates that differ least from each image, pixel by pixel.

    The order is that of the Euclidean (L2) distance between the pixels.

    Args:
        images: (M, 3, H, W) in [-1, 1].
        candidates: Batches (B, 3, H, W) in [-1, 1], read once; together at least k images.
        k: Neighbours of an image.
        mirrored: Whether a candidate's mirror image counts as the candidate too (for training with flips).

    Raises:
        ValueError: If there are fewer than k candidates.
    """
    best = Neighbours(images.new_empty(len(images), 0), images.new_empty(len(images), 0, *images.shape[1:]))
    rows = torch.arange(len(images))[:, None]
    for batch in candidates:
        found = _distances(images, batch)  # (M, B)
        flipped = _distances(images, batch.flip(-1)) if mirrored else found
        nearer = flipped < found
        found = torch.minimum(found, flipped)
        order = found.argsort(dim=1, stable=True)[:, :k]  # (M, at most k)
        shown = torch.where(nearer[rows, order][..., None, None, None], batch.flip(-1)[order], batch[order])
        distances = torch.cat([best.distances, found[rows, order]], dim=1)
        order = distances.argsort(dim=1, stable=True)[:, :k]
        best = Neighbours(distances[rows, order], torch.cat([best.images, shown], dim=1)[rows, order])
    if best.distances.shape[1] < k:
        raise ValueError(f"there are {best.distances.shape[1]} candidates for {k} neighbours; give more, or lower k.")
    return best


def equal_pairs(pictures: Sequence[Image.Image]) -> int:
    """Number of pairs whose pixels are all equal; three equal pictures are three pairs."""
    counts = Counter((picture.size, picture.mode, picture.tobytes()) for picture in pictures)
    return sum(n * (n - 1) // 2 for n in counts.values())


def _distances(images: Tensor, batch: Tensor) -> Tensor:
    """Root mean squared differences in 8-bit levels, (M, B)."""
    flat, other = images.flatten(1), batch.flatten(1)
    # The matrix trick would lose the small distances of near copies.
    distances: Tensor = torch.cdist(flat, other, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.mul(127.5 / flat.shape[1] ** 0.5)
