"""TAEF2: the tiny autoencoder for the latent space of FLUX.2 (O. Boer Bohan, github.com/madebyollin/taesd, MIT).

Sides 8 times smaller, 32 channels, deterministic, 2.6 million weights. It differs from the tiny autoencoder of
diffusers in the blocks at the lowest resolution, which begin with a wider bottleneck. The layers are numbered as in the
published files; `genaim.pretrained.taef2` reads them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genaim.config import Config
from genaim.tokenizers.latents import LatentTokenizer, Posterior

WIDTH, LATENT_CHANNELS, DOWNSAMPLING = 64, 32, 8
LATENT_LIMIT = 3.0  # the decoder squashes latents softly to this size


class TAEF2Config(Config):
    """The tiny FLUX.2 autoencoder, for images of any size."""

    kind: Literal["taef2"] = "taef2"
    """Name in the registry of tokenizers."""
    image_size: int = Field(256, ge=1)
    """Side of the images."""
    patch_size: int = Field(1, ge=1)
    """Latent cells of a token's side."""
    latent_scale: float | None = Field(None, gt=0)
    """Factor that brings latents to unit size; none is published, so null measures it in training."""
    source: str | None = None
    """In recipes: the folder of the published weights, which a model folder has of its own."""


class Block(nn.Module):
    """Three 3x3 convolutions around a shortcut, and at the lowest resolution a 1x1 bottleneck before them."""

    def __init__(self, bottleneck: bool = False) -> None:
        super().__init__()
        self.pool = _bottleneck() if bottleneck else None
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to (B, c, h, w)."""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class SoftLimit(nn.Module):
    """Keeps latents within the range that the decoder knows."""

    def forward(self, latent: Tensor) -> Tensor:
        """Any shape, to (-3, 3)."""
        return torch.tanh(latent / LATENT_LIMIT) * LATENT_LIMIT


class TAEF2(LatentTokenizer):
    """Images to a latent without noise, and back."""

    deterministic = True

    def __init__(self, config: TAEF2Config) -> None:
        super().__init__(config.image_size, DOWNSAMPLING, LATENT_CHANNELS, config.patch_size, config.latent_scale)
        self.config = config
        self.encoder = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, padding=1),
            Block(),
            *(_resample(stride=2), Block(), Block(), Block()),
            *(_resample(stride=2), Block(), Block(), Block()),
            *(_resample(stride=2), Block(True), Block(True), Block(True)),
            nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            SoftLimit(),
            nn.Conv2d(LATENT_CHANNELS, WIDTH, 3, padding=1),
            nn.ReLU(),
            *(Block(True), Block(True), Block(True), nn.Upsample(scale_factor=2), _resample()),
            *(Block(), Block(), Block(), nn.Upsample(scale_factor=2), _resample()),
            *(Block(), Block(), Block(), nn.Upsample(scale_factor=2), _resample()),
            Block(),
            nn.Conv2d(WIDTH, 3, 3, padding=1),
        )

    def posterior(self, images: Tensor) -> Posterior:
        """The latent, with deviation 0."""
        mean = self.encoder((images + 1) / 2).float()  # the network's images are in [0, 1]
        return Posterior(mean, torch.zeros_like(mean))

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Images of an unscaled latent, not clamped."""
        images: Tensor = self.decoder(latent) * 2 - 1
        return images


def _conv() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)


def _resample(stride: int = 1) -> nn.Conv2d:
    """The convolution that changes the resolution, or follows its change."""
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=stride, padding=1, bias=False)


def _bottleneck() -> nn.Sequential:
    wide = 4 * WIDTH
    return nn.Sequential(
        nn.Conv2d(WIDTH, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(), nn.Conv2d(wide, WIDTH, 1, bias=False)
    )
