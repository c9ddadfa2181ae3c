"""The one mask rule: a query may attend to a key if and only if ``key_step <= query_step``.

Step ids belong to the elements of the sequence that is fed. What the papers draw are choices of ids:

    raster 0 1 2 3    scales 0 1 1 1    prefix 0 0 2 3    full 0 0 0 0
      1 0 0 0           1 0 0 0           1 1 0 0           1 1 1 1
      1 1 0 0           1 1 1 1           1 1 0 0           1 1 1 1
      1 1 1 0           1 1 1 1           1 1 1 0           1 1 1 1
      1 1 1 1           1 1 1 1           1 1 1 1           1 1 1 1

Padding keys carry `NEVER`. Decoding that appends to a cache step by step needs no mask, by the same definition.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.noise import Noise, ranks

NEVER = torch.iinfo(torch.int64).max
"""Step id of a key that no query may attend to."""


class StepMask(NamedTuple):
    """Step ids of queries and keys, each (S,) or (B, S) int64; every attention backend derives its own form."""

    query_steps: Tensor
    key_steps: Tensor


def step_mask(query_steps: Tensor, key_steps: Tensor) -> Tensor:
    """The boolean attention mask, True where a query may attend.

    Args:
        query_steps: Step id of each query, (Q,) or (B, Q) int64.
        key_steps: Step id of each key, (S,) or (B, S) int64; `NEVER` hides a key.

    Returns:
        (Q, S) bool, or (B, 1, Q, S) where rows differ, ready for ``scaled_dot_product_attention``.
    """
    allowed = key_steps[..., None, :] <= query_steps[..., :, None]
    return allowed if allowed.dim() == 2 else allowed.unsqueeze(1)


def free_form(grid: tuple[int, int], noise: Noise) -> Tensor:
    """Random free-form sets of a grid's positions: blobs of a smooth random field, of any share of the grid.

    Args:
        grid: Rows and columns.
        noise: Source of random numbers, one row per image.

    Returns:
        (B, N) bool, True inside the set; from no position to all but one.
    """
    coarse = noise.normal(1, 4, 4)
    field = F.interpolate(coarse, size=grid, mode="bicubic", align_corners=False).flatten(1)
    field = field + 0.1 * noise.normal(field.shape[1])  # ragged edges
    count = (noise.uniform(1) * field.shape[1]).long()  # (B, 1)
    return ranks(field) < count
