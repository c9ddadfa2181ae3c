"""Precision and recall of generated images (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991, section 2).

A set of features stands for the region it covers: the union of the balls around its members that reach to the member's
k-th nearest other member. Precision is the share of generated images inside the real region, recall the share of real
images inside the generated one. Both are high only if the images are right *and* varied. Follows the published code
(github.com/kynkaat/improved-precision-and-recall-metric); features are the caller's choice, and figures compare only
at equal features, k and numbers of images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1000  # rows of distances held at a time


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    """Share of generated images that look real."""
    recall: float
    """Share of real images that could have been generated."""


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision and recall of generated images against real ones.

    Args:
        real: Features, (M, F).
        generated: Features, (L, F).
        k: Which neighbour gives the radius of a ball.

    Raises:
        ValueError: If a set has no k-th neighbour, or the features differ in length.
    """
    if real.dim() != 2 or generated.dim() != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"features must be (M, F) and (L, F), not {tuple(real.shape)} and {tuple(generated.shape)}; flatten them."
        )
    if k < 1 or min(len(real), len(generated)) <= k:
        raise ValueError(f"k = {k} needs more than {k} images in each set, not {len(real)} and {len(generated)}.")
    return PrecisionRecall(
        precision=share_inside(generated, real, neighbour_radii(real, k)),
        recall=share_inside(real, generated, neighbour_radii(generated, k)),
    )


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """Distance of every member to its k-th nearest other member, (M, F) to (M,) float64."""
    radii = []
    for first in range(0, len(features), CHUNK):
        distances = _distances(features[first : first + CHUNK], features)
        rows = torch.arange(len(distances), device=features.device)
        distances[rows, rows + first] = torch.inf  # not its own neighbour
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of the points that lie in at least one ball, their surfaces included.

    Args:
        points: (M, F).
        centres: (L, F).
        radii: (L,) float64.
    """
    inside = [(_distances(part, centres) <= radii).any(1) for part in points.split(CHUNK)]
    return torch.cat(inside).double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances in float64, without the matrix trick, whose rounding would separate equal points."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
