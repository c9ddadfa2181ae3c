"""Pixel patches: the image itself, cut into squares (AIM, El-Nouby et al. 2024, https://arxiv.org/abs/2401.08541).

Nothing is trained, and nothing is lost but colour where one channel is wanted, so a head with a density over 8-bit
values gives exact bits per dimension.
"""

from typing import Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor

from genaim.config import Config
from genaim.core.layers import to_levels
from genaim.core.noise import Noise
from genaim.tokenizers.base import Tokenizer

PIXEL_LEVELS = 256


class PixelPatchesConfig(Config):
    """Squares of pixels."""

    kind: Literal["patches"] = "patches"
    """Name in the registry of tokenizers."""
    image_size: int = Field(ge=1)
    """Side of the images."""
    patch_size: int = Field(ge=1)
    """Side of a patch, in pixels."""
    grey: bool = False
    """One channel instead of three: the mean of red, green and blue, to the nearest of the 256 levels. Grey images lose
    nothing, colours become grey."""

    @model_validator(mode="after")
    def _check(self) -> "PixelPatchesConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}")
        return self


class PixelPatches(Tokenizer):
    """Images to patches and back; the values of a token are ordered (row, column, channel), as in AIM."""

    token_channels: int
    pixel_levels = PIXEL_LEVELS

    def __init__(self, config: PixelPatchesConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size, self.patch_size = config.image_size, config.patch_size
        self.side = config.image_size // config.patch_size
        self.num_tokens = self.side**2
        self.token_channels = config.patch_size**2 * (1 if config.grey else 3)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return self.side, self.side

    def encode(self, images: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Patches, (B, N, C) in [-1, 1], with `grey` at the 8-bit levels; `noise` is not used."""
        self.check_images(images)
        if self.config.grey:
            images = to_levels(images.mean(1, keepdim=True), PIXEL_LEVELS)
        return images_to_patches(images, self.patch_size)

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of patches, (B, 3, H, W) in [-1, 1]."""
        p = self.patch_size
        images = rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=self.side, p=p, q=p)
        return images.float().clamp(-1, 1).repeat(1, 3 // images.shape[1], 1, 1)

    def encode_for_cache(self, images: Tensor) -> Tensor:
        """8-bit values, (B, N, C) uint8."""
        return ((self.encode(images) + 1) * ((PIXEL_LEVELS - 1) / 2)).round().to(torch.uint8)

    def from_cache(self, stored: Tensor, noise: Noise) -> Tensor:
        """Patches in [-1, 1] of 8-bit values."""
        return stored.float() / ((PIXEL_LEVELS - 1) / 2) - 1


def images_to_patches(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) to (B, N, p p C): row-major patches, values ordered (row, column, channel)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)
