"""Enlarged images that give the low-resolution image again when they are reduced.

Reduced means PIL's antialiased bicubic resize, by which the low-resolution images of training are made: rows first,
then columns, with 8-bit pixels between the two.
"""

import torch.nn.functional as F
from torch import Tensor

LEVEL = 2 / 255  # one step of 8-bit pixels in [-1, 1]
TOLERANCE = 0.25 * LEVEL  # leaves room for the rounding to 8 bits
MAX_STEPS = 200


def project(images: Tensor, low_res: Tensor, *, darkest: Tensor | None = None, max_steps: int = MAX_STEPS) -> Tensor:
    """The images changed so that they reduce to the given ones, by iterated back-projection.

    1. What the reduced image lacks is enlarged and added (Irani & Peleg 1991,
       https://doi.org/10.1016/1049-9652(91)90045-L).
    2. So is, with the opposite sign, what the image reduced in its rows alone has outside [-1, 1]. PIL clips it, and
       without this term 0.3% of the values of reduced 8-bit emoji were off by 2 levels, with it none.
    3. Values are clipped to [-1, 1], and carried on along their last change (Beck & Teboulle 2009, FISTA,
       https://doi.org/10.1137/080716542), which takes 10 to 90 steps where plain steps take 3 to 6 times as many.

    It ends once no value is off by more than a quarter of a level. Few low-resolution images, such as noise of
    independent pixels, are reductions of no image at all; these come as close as the steps allow.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        low_res: (B, 3, h, w) in [-1, 1].
        darkest: Least value of every pixel, (H, W) in [-1, 1]; None is -1.
        max_steps: Largest number of steps.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    size = images.shape[-2:]
    least = images.new_tensor(-1) if darkest is None else darkest
    images = before = images.clamp(-1, 1).maximum(least)
    for step in range(max_steps):
        if _error(images, low_res) <= TOLERANCE:
            break
        ahead = images + (step / (step + 3)) * (images - before)
        before = images
        rows = _resize(ahead, ahead.shape[-2], low_res.shape[-1])
        lacking = low_res - _resize(rows, *low_res.shape[-2:])  # 1.
        outside = rows - rows.clamp(-1, 1)  # 2.
        images = (ahead + _resize(lacking, *size) - _resize(outside, *size)).clamp(-1, 1).maximum(least)  # 3.
    return images


def _error(images: Tensor, low_res: Tensor) -> float:
    """The largest error of a reduced image, with rows clipped between the two passes and without."""
    rows = _resize(images, images.shape[-2], low_res.shape[-1])
    clipped = _resize(rows.clamp(-1, 1), *low_res.shape[-2:])
    errors = [(reduced - low_res).abs().max().item() for reduced in (clipped, _resize(rows, *low_res.shape[-2:]))]
    return max(errors)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    """PIL's bicubic resize without rounding."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
