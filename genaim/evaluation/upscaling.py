"""How good enlarged images are, by the conventions of single-image super-resolution.

PSNR and SSIM are of the luma alone, with a border left out that each method treats in its own way (the protocol of
Set5, Bevilacqua et al. 2012; luma as in MATLAB's rgb2ycbcr, which is ITU-R BT.601 in 16 to 235).
"""

import torch
from torch import Tensor

from genaim.data.transforms import resize_images

PEAK = 255.0
SSIM_SIDE = 11  # of its Gaussian window


def luma(images: Tensor) -> Tensor:
    """Luma of RGB images, (B, 3, H, W) in [-1, 1] to (B, 1, H, W) in [16, 235]."""
    weights = images.new_tensor((65.481, 128.553, 24.966)).view(3, 1, 1)
    return 16 + (weights * (images.clamp(-1, 1) + 1) / 2).sum(1, keepdim=True)


def luma_psnr(images: Tensor, others: Tensor, border: int) -> Tensor:
    """Peak signal-to-noise ratio of the luma in dB, (B,); at most 100.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        others: The same.
        border: Pixels that are left out along each side, the factor as a rule.
    """
    first, second = (_inside(luma(x), border) for x in (images, others))
    error = (first - second).square().flatten(1).mean(1)
    return 10 * torch.log10(PEAK**2 / error.clamp_min(PEAK**2 * 1e-10))


def luma_ssim(images: Tensor, others: Tensor, border: int) -> Tensor:
    """Structural similarity of the luma (Wang et al. 2004), (B,) in [-1, 1], by torchmetrics.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        others: The same.
        border: Pixels that are left out along each side.

    Raises:
        ValueError: If less than one window of 11x11 pixels is left, or torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise ValueError("SSIM needs torchmetrics; run pip install 'genaim[eval]'.") from None
    first, second = (_inside(luma(x), border) for x in (images, others))
    if min(first.shape[-2:]) < SSIM_SIDE:
        raise ValueError(f"SSIM needs {SSIM_SIDE}x{SSIM_SIDE} pixels inside the border, not {tuple(first.shape[-2:])}.")
    _, similarity = structural_similarity_index_measure(
        first, second, data_range=PEAK, kernel_size=SSIM_SIDE, reduction="none", return_full_image=True
    )
    out: Tensor = _inside(similarity, SSIM_SIDE // 2).flatten(1).mean(1)  # whole windows, as published
    return out


def consistency_error(images: Tensor, low_res: Tensor) -> Tensor:
    """How far reduced images are from the given ones, in levels of 8 bits, (B, 3, h, w).

    Args:
        images: (B, 3, H, W) in [-1, 1]; they are rounded to 8 bits, and reduced by PIL's bicubic resize.
        low_res: (B, 3, h, w) in [-1, 1].
    """
    return (resize_images(images, (low_res.shape[-2], low_res.shape[-1])) - low_res.cpu()).abs() * PEAK / 2


def _inside(images: Tensor, border: int) -> Tensor:
    height, width = images.shape[-2:]
    return images[..., border : height - border, border : width - border]
