"""How good completions of images are, and the fills that need no model.

Telea's method is OpenCV's, biharmonic interpolation that of scikit-image.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.noise import NoiseSource, ranks
from genaim.data.transforms import levels_to_tensor, tensor_to_pil
from genaim.evaluation.reconstruction import psnr

TELEA_RADIUS = 3


def free_form_holes(count: int, side: int, seed: int = 0, least: float = 0.1, most: float = 0.5) -> Tensor:
    """Random smooth holes, of a share of the image that is uniform between two bounds.

    Returns:
        Kept pixels, (count, side, side) bool.
    """
    noise = NoiseSource(seed, torch.arange(count))
    field = F.interpolate(noise.normal(1, 5, 5), size=(side, side), mode="bicubic", align_corners=False).flatten(1)
    share = least + (most - least) * noise.uniform(1)
    return (ranks(field) >= (share * side * side).long()).view(count, side, side)


def hole_psnr(images: Tensor, others: Tensor, keep: Tensor) -> Tensor:
    """PSNR inside the holes of every image in dB, (B,).

    Args:
        images: (B, 3, H, W) in [-1, 1].
        others: The same, completed.
        keep: (B, H, W) bool; at least one pixel of an image is not kept.
    """
    hole = (~keep).unsqueeze(1)
    error = (((others - images) / 2).square() * hole).flatten(1).sum(1) / (3 * hole.flatten(1).sum(1))
    return -10 * torch.log10(error.clamp_min(1e-10))


def diversity(results: Tensor) -> Tensor:
    """Mean distance of every two results of an image, as root mean square of the differences in 8-bit levels, (B,).

    Args:
        results: (B, n, ...) in [-1, 1], n at least 2: whole images, or the values inside the hole.
    """
    distances = [
        (results[:, i] - results[:, j]).square().flatten(1).mean(1).sqrt() * 127.5
        for i, j in combinations(range(results.shape[1]), 2)
    ]
    return torch.stack(distances).mean(0)


def mean_colour(images: Tensor, keep: Tensor) -> Tensor:
    """Holes filled with the mean of what is kept."""
    kept = keep.unsqueeze(1)
    mean = (images * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True)
    return torch.where(kept, images, mean)


def telea(images: Tensor, keep: Tensor) -> Tensor:
    """Fast marching (Telea 2004), by OpenCV."""
    try:
        import cv2
    except ImportError:
        raise ValueError("Telea's fill needs OpenCV; run pip install 'genaim[eval]'.") from None
    blank = mean_colour(images, keep)  # at the edges OpenCV looks at pixels under the mask
    filled = [
        cv2.inpaint(np.array(picture), (~k).numpy().astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA)
        for picture, k in zip(tensor_to_pil(blank), keep, strict=True)
    ]
    return levels_to_tensor(np.stack(filled).transpose(0, 3, 1, 2))


def biharmonic(images: Tensor, keep: Tensor) -> Tensor:
    """Biharmonic interpolation (Damelin and Hoang 2018), by scikit-image."""
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError:
        raise ValueError("biharmonic fills need scikit-image; run pip install 'genaim[eval]'.") from None
    filled = [
        inpaint_biharmonic(image.permute(1, 2, 0).double().numpy(), (~k).numpy(), channel_axis=-1)
        for image, k in zip(images, keep, strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float().clamp(-1, 1)


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean colour": mean_colour,
    "Telea": telea,
    "biharmonic": biharmonic,
}
"""Images (B, 3, H, W) in [-1, 1] and kept pixels (B, H, W) bool to completed images."""


def best_of(images: Tensor, results: Tensor) -> Tensor:
    """Of the results (B, n, 3, H, W) of every image, the one nearest to it, (B, 3, H, W)."""
    scores = torch.stack([psnr(images, results[:, i]) for i in range(results.shape[1])], dim=1)
    return results[torch.arange(len(images)), scores.argmax(1)]
