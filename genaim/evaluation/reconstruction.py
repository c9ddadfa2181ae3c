"""How much of an image a tokenizer keeps."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.tokenizers import Tokenizer


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every image in dB, (B,); at most 100.

    Args:
        images: (B, 3, H, W) in [-1, 1], values that span 2.
        others: The same; clamped to the range.
    """
    error = ((others.clamp(-1, 1) - images) / 2).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def bicubic_round_trip(images: Tensor, side: int) -> Tensor:
    """Images reduced to ``side`` x ``side`` pixels and enlarged again, antialiased bicubic both ways."""
    small = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    return F.interpolate(small, size=images.shape[-2:], mode="bicubic", antialias=True)


@torch.no_grad()
def reconstruction_psnr(
    tokenizer: Tokenizer, batches: Iterable[Tensor], report: Callable[[int], None] | None = None
) -> float:
    """Mean over images of the PSNR of their reconstruction, in dB.

    Args:
        tokenizer: In evaluation mode.
        batches: Images (B, 3, H, W) in [-1, 1].
        report: Told after every batch how many images are done.

    Raises:
        ValueError: If there is no image.
    """
    found: list[float] = []
    for images in batches:
        found += psnr(images, tokenizer.decode(tokenizer.encode(images))).tolist()
        if report is not None:
            report(len(found))
    if not found:
        raise ValueError("there are no images to reconstruct; give at least one batch.")
    return sum(found) / len(found)
