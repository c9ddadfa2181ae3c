"""Multi-scale residual VQ autoencoder (VAR, Tian et al. 2024, https://arxiv.org/abs/2404.02905, section 3.2).

An image becomes K token maps of growing side, each coding what the maps before it leave over. Follows the published
code (github.com/FoundationVision/VAR, models/quant.py) exactly at inference, and its objective of the quantizer. Moving
averages, revival of codes and the rotation trick are added; the trainer of the autoencoder and its losses on images are
our own, since the official repository does not release them.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.config import Config
from genaim.core.layers import at_least_float32, in_float32
from genaim.core.noise import Noise
from genaim.tokenizers.autoencoder import AutoencoderConfig, Decoder, Encoder
from genaim.tokenizers.base import TrainableTokenizer, TrainingPass
from genaim.tokenizers.codebook import Codebook, CodebookConfig

KNOWN_SHARE = 0.5  # of the area of a coarse token that must be kept for inpainting to take it as given


class ResidualConvs(nn.Module):
    """The convolutions Phi of the paper, ``x / 2 + conv(x) / 2`` for the published ratio, shared between scales."""

    def __init__(self, channels: int, num_convs: int, ratio: float, num_scales: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs))
        self.conv_of_scale = [conv_of_scale(k, num_scales, num_convs) for k in range(num_scales)]

    def forward(self, x: Tensor, scale: int) -> Tensor:
        """(B, C, h, w) to (B, C, h, w), for one scale; float32 even under autocast, which changed 1% of the tokens."""
        conv = self.convs[self.conv_of_scale[scale]]
        return x * (1 - self.ratio) + in_float32(conv, x).to(x.dtype) * self.ratio


def conv_of_scale(scale: int, num_scales: int, num_convs: int) -> int:
    """Which of the shared convolutions a scale uses: the one whose tick is nearest to the scale's share.

    For 4 convolutions and 10 scales two choices are ties on paper, and the official weights depend on how NumPy's
    float64 rounds them (github.com/FoundationVision/VAR, models/quant.py, PhiPartiallyShared).
    """
    edge = 1 / 3 / num_convs if num_convs == 4 else 1 / 2 / num_convs
    ticks = np.linspace(edge, 1 - edge, num_convs)
    return int(np.argmin(np.abs(ticks - scale / max(num_scales - 1, 1))))


class Quantized(NamedTuple):
    """What the quantizer returns in training."""

    latent: Tensor
    """Quantised latent with a straight-through (or rotated) gradient, (B, C, h, w)."""
    loss: Tensor
    """Commitment and codebook loss, mean over scales, (B,)."""
    tokens: Tensor
    """(B, N) int64."""
    vectors: Tensor
    """What each token codes, (B, N, C), without gradient: the input of `Codebook.update`."""


class MultiScaleVQConfig(Config):
    """A multi-scale VQ autoencoder; the defaults are the published 256-pixel tokenizer."""

    kind: Literal["multiscale_vq"] = "multiscale_vq"
    """Name in the registry of tokenizers."""
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """Side of each scale's token map; the last is the side of the latent."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """Encoder and decoder."""
    codebook: CodebookConfig = CodebookConfig()
    """Codes and how they are trained."""
    num_residual_convs: int = Field(4, ge=1)
    """Convolutions Phi, shared between the scales."""
    residual_ratio: float = Field(0.5, ge=0, le=1)
    """Share of the convolution in Phi."""

    @model_validator(mode="after")
    def _check(self) -> "MultiScaleVQConfig":
        sides = self.patch_nums
        if not sides or min(sides) < 1 or any(a > b for a, b in pairwise(sides)):
            raise ValueError(f"patch_nums {list(sides)} must be positive and must not shrink")
        used = {conv_of_scale(k, len(sides), self.num_residual_convs) for k in range(len(sides))}
        if len(used) < self.num_residual_convs:
            raise ValueError(
                f"num_residual_convs {self.num_residual_convs} leaves convolutions unused with {len(sides)} scales; "
                f"use {len(used)} or fewer"
            )
        return self

    @property
    def image_size(self) -> int:
        """Side of the images."""
        return self.patch_nums[-1] * self.autoencoder.downsampling


class MultiScaleVQ(TrainableTokenizer):
    """Images to K token maps, and back."""

    codebook_size: int

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.autoencoder.latent_channels
        self.patch_nums = config.patch_nums
        self.image_size = config.image_size
        self.scale_sizes = [side * side for side in config.patch_nums]
        self.num_tokens = sum(self.scale_sizes)
        self.codebook_size = config.codebook.size
        self.latent_channels = channels
        self.encoder = Encoder(config.autoencoder)
        self.decoder = Decoder(config.autoencoder)
        self.quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.codebook = Codebook(config.codebook, channels)
        self.residual_convs = ResidualConvs(
            channels, config.num_residual_convs, config.residual_ratio, len(config.patch_nums)
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the only scale."""
        if len(self.patch_nums) > 1:
            raise ValueError(
                f"the tokenizer has {len(self.patch_nums)} scales, which only the order 'scales' serves; use model "
                "kind var, or a tokenizer with one entry in patch_nums."
            )
        return self.patch_nums[0], self.patch_nums[0]

    # Images and latents

    def encode_latent(self, images: Tensor) -> Tensor:
        """The latent that is quantised, (B, C, h, w) float32 (quantisation is float32 even under autocast)."""
        return at_least_float32(self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype))))

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Images of a latent, (B, 3, H, W), not clamped."""
        images: Tensor = self.decoder(self.post_quant_conv(latent))
        return images

    def encode(self, images: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Tokens of all scales in order, row-major inside a scale, (B, N) int64; `noise` is not used."""
        self.check_images(images)
        return self.quantize(self.encode_latent(images))

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of the tokens of all scales, (B, 3, H, W) in [-1, 1]."""
        return self.decode_latent(self.tokens_to_latent(tokens)).float().clamp(-1, 1)

    def token_mask(self, keep: Tensor, grow: int = 0) -> Tensor:
        """Tokens of every scale whose area is kept whole, (B, N) bool.

        A latent cell is hidden by one hidden pixel, and a token by one hidden cell of those that its area resize reads;
        ``grow`` counts latent cells.
        """
        return self._kept(keep, grow, 1.0)

    def known_tokens(self, keep: Tensor, grow: int = 0) -> Tensor:
        """Tokens of the finest side whose area is kept whole, and coarser ones of which half is, (B, N) bool.

        A coarse token says little more than the mean colour of a large area. To draw it without a look at the kept half
        was measured 2 dB worse in the holes of emoji (12.2 instead of 14.2, and a Frechet distance of 3.5 instead of
        2.6), and to keep all coarse tokens left little to draw.
        """
        return self._kept(keep, grow, KNOWN_SHARE)

    def _kept(self, keep: Tensor, grow: int, share: float) -> Tensor:
        full = self.patch_nums[-1]
        hidden = self.hidden_cells(keep, (full, full), grow)
        maps = [
            F.adaptive_avg_pool2d(hidden, side).flatten(1) <= (0 if side == full else 1 - share) + 1e-6
            for side in self.patch_nums
        ]
        return torch.cat(maps, dim=1)

    # Latents and tokens

    def quantize(self, latent: Tensor, *, temperature: float = 0.0, noise: Noise | None = None) -> Tensor:
        """Codes of the residual, scale by scale.

        Args:
            latent: (B, C, h, w).
            temperature: 0 takes the nearest codes. Above, those of scales below the full side are drawn, see
                `Codebook.draw`; the scales after them mend what that leaves.
            noise: Where they are drawn from.

        Returns:
            (B, N) int64.

        Raises:
            ValueError: If codes are to be drawn without noise.
        """
        if temperature > 0 and noise is None:
            raise ValueError(f"temperature {temperature} draws codes, which needs noise; pass noise, or temperature 0.")
        residual, tokens = latent, []
        for scale, side in enumerate(self.patch_nums):
            vectors = self.to_side(residual, side)
            if noise is not None and temperature > 0 and side < self.patch_nums[-1]:
                maps = self.codebook.draw(vectors, temperature, noise)  # (B, side, side)
            else:
                maps = self.codebook.nearest(vectors)
            residual = residual - self.scale_latent(maps, scale)
            tokens.append(maps.flatten(1))
        return torch.cat(tokens, dim=1)

    def scale_latent(self, maps: Tensor, scale: int) -> Tensor:
        """What one scale adds to the latent: codes enlarged to the full side, then Phi.

        Args:
            maps: Tokens of the scale, (B, side, side) int64.
            scale: Its index.

        Returns:
            (B, C, h, w).
        """
        return self._expand(self.codebook.embed(maps).permute(0, 3, 1, 2), scale)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Token maps of the scales present in ``tokens``, each (B, side, side).

        Raises:
            ValueError: If the tokens do not end with a whole scale.
        """
        sizes = [sum(self.scale_sizes[: k + 1]) for k in range(len(self.patch_nums))]
        if tokens.shape[1] not in sizes:
            raise ValueError(f"{tokens.shape[1]} tokens are not a whole number of scales {list(self.patch_nums)}.")
        count = sizes.index(tokens.shape[1]) + 1
        maps = tokens.split(self.scale_sizes[:count], dim=1)
        return [m.unflatten(1, (side, side)) for m, side in zip(maps, self.patch_nums, strict=False)]

    def running_latents(self, tokens: Tensor) -> list[Tensor]:
        """The latent after each scale (f_hat in the paper's algorithm 2), K tensors (B, C, h, w)."""
        total, latents = torch.zeros((), device=tokens.device), []
        for scale, maps in enumerate(self.split(tokens)):
            total = total + self.scale_latent(maps, scale)
            latents.append(total)
        return latents

    def tokens_to_latent(self, tokens: Tensor) -> Tensor:
        """The latent of the scales present, (B, C, h, w)."""
        return self.running_latents(tokens)[-1]

    def scale_inputs(self, tokens: Tensor) -> Tensor:
        """Teacher-forcing inputs of every scale after the first.

        The input of a scale is the latent of the scales before it, area-resized to its side (VAR, section 3.1).

        Args:
            tokens: Tokens of all scales (or all but the last), (B, N) int64.

        Returns:
            The inputs of scales 2 to K in order, (B, number of their tokens, C), in the codebook's units and format.
        """
        latents = self.running_latents(tokens)
        sides = self.patch_nums[1 : len(latents) + 1]
        inputs = [self.to_side(f, side).flatten(2).mT for f, side in zip(latents, sides, strict=False)]
        return torch.cat(inputs, dim=1)

    def to_side(self, latent: Tensor, side: int) -> Tensor:
        """Area-resizes a latent to (B, C, side, side)."""
        return latent if side == self.patch_nums[-1] else F.interpolate(latent, size=(side, side), mode="area")

    def _expand(self, codes: Tensor, scale: int) -> Tensor:
        side = self.patch_nums[-1]
        if codes.shape[-1] != side:
            codes = F.interpolate(codes, size=(side, side), mode="bicubic")
        expanded: Tensor = self.residual_convs(codes, scale)
        return expanded

    # Training

    def training_pass(self, images: Tensor, noise: Noise) -> TrainingPass:
        """Reconstruction, the codebook's loss, and what each token codes; `noise` is not used."""
        quantized = self.quantize_for_training(self.encode_latent(images))
        outputs = {"tokens": quantized.tokens, "vectors": quantized.vectors}
        return TrainingPass(self.decode_latent(quantized.latent), {"codebook": quantized.loss}, outputs)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight."""
        return self.decoder.last_layer

    def quantize_for_training(self, latent: Tensor) -> Quantized:
        """Quantises with gradients (the published objective, plus the options of `CodebookConfig`).

        1. Code the residual scale by scale, without gradient to the residual.
        2. After every scale, compare the running latent with the latent: commitment pulls the encoder, the codebook
           loss pulls codes and Phi.
        3. Pass the decoder's gradient to the encoder straight through, or rotated.

        Args:
            latent: (B, C, h, w) float32.
        """
        codebook, target = self.codebook, latent.detach()
        residual, total = target, torch.zeros_like(target)
        loss = torch.zeros(latent.shape[0], device=latent.device)
        tokens, coded = [], []
        for scale, side in enumerate(self.patch_nums):  # 1.
            vectors = self.to_side(residual, side)
            maps = codebook.nearest(vectors)
            update = self.scale_latent(maps, scale)
            residual = residual - update.detach()
            total = total + update
            tokens.append(maps.flatten(1))
            coded.append(vectors.flatten(2).mT)
            commitment = (latent - total.detach()).square().flatten(1).mean(1)  # 2.
            codes = (target - total).square().flatten(1).mean(1)
            loss = loss + codebook.config.commitment * commitment + codes
        passed = codebook.pass_gradient(latent, total)  # 3.
        return Quantized(passed, loss / len(self.patch_nums), torch.cat(tokens, dim=1), torch.cat(coded, dim=1))
