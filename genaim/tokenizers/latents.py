"""Continuous tokens: patches of an autoencoder's latent, times a scale that brings it to unit size.

`LatentTokenizer` is what they share; `KLAutoencoder` is the one that MAR publishes and that our trainer trains (Rombach
et al. 2022, https://arxiv.org/abs/2112.10752; code: github.com/LTH14/mar, models/vae.py). Official KL-16 weights load
through `genaim.pretrained.mar`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from genaim.config import Config
from genaim.core.layers import at_least_float32
from genaim.core.noise import Noise
from genaim.tokenizers.autoencoder import AutoencoderConfig, Decoder, Encoder
from genaim.tokenizers.base import Tokenizer, TrainableTokenizer, TrainingPass

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as published


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents."""

    mean: Tensor
    """(B, C, h, w)."""
    std: Tensor
    """(B, C, h, w); 0 where the encoder is deterministic."""


class LatentTokenizer(Tokenizer):
    """Continuous tokens of any autoencoder; sub-classes give its posterior and its decoder.

    A token is a patch of ``patch_size`` x ``patch_size`` latent cells, times the latent scale; its values are ordered
    (channel, row, column). The scale is a buffer, so that it travels with the weights and has their precision; 0 means
    not yet measured.
    """

    latent_scale: Tensor
    token_channels: int
    deterministic = False
    """Whether the posterior's deviation is always 0, so that a cache need not keep it."""

    def __init__(
        self, image_size: int, downsampling: int, latent_channels: int, patch_size: int, latent_scale: float | None
    ) -> None:
        """Takes pixels of the image's side, pixels per latent cell, channels, cells of a token's side, and the scale.

        Raises:
            ValueError: If the image is not a whole number of tokens.
        """
        super().__init__()
        if image_size % (downsampling * patch_size):
            raise ValueError(
                f"image_size {image_size} must be a multiple of downsampling {downsampling} x patch_size {patch_size}"
            )
        self.image_size, self.downsampling, self.patch_size = image_size, downsampling, patch_size
        self.side = image_size // downsampling // patch_size
        self.num_tokens = self.side**2
        self.token_channels = latent_channels * patch_size**2
        self.latent_shape = (latent_channels, self.side * patch_size, self.side * patch_size)
        self.register_buffer("latent_scale", torch.tensor(latent_scale or 0.0))

    @abstractmethod
    def posterior(self, images: Tensor) -> Posterior:
        """The distribution of the unscaled latent, images (B, 3, H, W) in [-1, 1] to (B, C, h, w)."""

    @abstractmethod
    def decode_latent(self, latent: Tensor) -> Tensor:
        """Images of an unscaled latent, (B, C, h, w) to (B, 3, H, W), not clamped."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens."""
        return self.side, self.side

    def encode(self, images: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Tokens, (B, N, C) float32: of the posterior's mean, or of a sample of it."""
        self.check_images(images)
        mean, std = self.posterior(images.to(self.latent_scale.dtype))
        latent = mean if noise is None else mean + std * noise.normal(*mean.shape[1:]).to(mean.dtype)
        return self.latent_to_tokens(latent * self.scale())

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens (B, N, C), (B, 3, H, W) in [-1, 1]."""
        latent = self.tokens_to_latent(tokens) / self.scale()
        return self.decode_latent(latent.to(self.latent_scale.dtype)).float().clamp(-1, 1)

    def encode_for_cache(self, images: Tensor) -> Tensor:
        """Mean and standard deviation of every token, one after the other, (B, N, 2 C); (B, N, C) without deviation."""
        self.check_images(images)
        return self._posterior_to_cache(self.posterior(images.to(self.latent_scale.dtype)))

    def from_cache(self, stored: Tensor, noise: Noise) -> Tensor:
        """A sample of the posterior, (B, N, C).

        Args:
            stored: What `encode_for_cache` gave, or moments (B, 2 C, h, w) of MAR's cache format.
            noise: Where the sample is drawn from.

        Raises:
            ValueError: If moments are of another autoencoder.
        """
        if stored.dim() == 4:
            self._check_moments(stored)
            stored = self._posterior_to_cache(split_moments(stored))
        if self.deterministic:
            return stored
        mean, std = stored.chunk(2, dim=-1)
        return mean + std * noise.normal(*mean.shape[1:])

    def _posterior_to_cache(self, posterior: Posterior) -> Tensor:
        parts = posterior[:1] if self.deterministic else posterior
        return torch.cat([self.latent_to_tokens(part * self.scale()) for part in parts], dim=-1)

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log variance of the unscaled latent as MAR's caches hold them, (B, 3, H, W) to (B, 2 C, h, w)."""
        mean, std = self.posterior(images)
        return torch.cat([mean, (2 * std.log()).clamp(*LOG_VARIANCE_RANGE)], dim=1)

    def _check_moments(self, moments: Tensor) -> None:
        channels, height, width = self.latent_shape
        if tuple(moments.shape[1:]) != (2 * channels, height, width):
            raise ValueError(
                f"moments {tuple(moments.shape[1:])} are not those of this tokenizer, which has "
                f"({2 * channels}, {height}, {width}) for {self.image_size} pixels; take the one that wrote them."
            )

    def latent_to_tokens(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) to (B, N, C p p)."""
        return latent_to_tokens(latent, self.patch_size)

    def tokens_to_latent(self, tokens: Tensor) -> Tensor:
        """(B, N, C p p) to (B, C, h, w)."""
        p = self.patch_size
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=self.side, p=p, q=p)

    def scale(self) -> Tensor:
        """The latent scale; 1 while it is not known."""
        return torch.where(self.latent_scale > 0, self.latent_scale, 1.0)

    @torch.no_grad()
    def measure_scale(self, posteriors: Iterable[Posterior]) -> None:
        """Sets the latent scale to the inverse root mean square of latents, from batches of images.

        Raises:
            ValueError: If there are no latents, or they have no finite size.
        """
        total, count = 0.0, 0
        for mean, std in posteriors:
            total += (mean.square() + std.square()).mean().item() * mean.numel()
            count += mean.numel()
        if not count:
            raise ValueError("there are no images to measure the latent scale on; give at least one batch.")
        if not 0 < total < math.inf:
            raise ValueError(f"{type(self).__name__} gives latents of mean square {total / count}; check its weights.")
        self.latent_scale.fill_((count / total) ** 0.5)


class KLAutoencoderConfig(Config):
    """A KL-regularised autoencoder; the defaults are the published KL-16 of MAR."""

    kind: Literal["kl"] = "kl"
    """Name in the registry of tokenizers."""
    image_size: int = Field(256, ge=1)
    """Side of the images."""
    autoencoder: AutoencoderConfig = AutoencoderConfig(channels=128, latent_channels=16, decoder_attention=False)
    """Encoder and decoder."""
    patch_size: int = Field(1, ge=1)
    """Latent cells of a token's side."""
    latent_scale: float | None = Field(None, gt=0)
    """Factor that brings latents to unit size (0.2325 for the published KL-16); null measures it in training."""


class KLAutoencoder(LatentTokenizer, TrainableTokenizer):
    """Images to a diagonal Gaussian over latents, and back."""

    def __init__(self, config: KLAutoencoderConfig) -> None:
        shape = config.autoencoder
        super().__init__(
            config.image_size, shape.downsampling, shape.latent_channels, config.patch_size, config.latent_scale
        )
        self.config = config
        channels = shape.latent_channels
        self.encoder = Encoder(shape, out_channels=2 * channels)
        self.decoder = Decoder(shape)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def moments(self, images: Tensor) -> Tensor:
        """Means, then log variances before they are clamped, (B, 2 C, h, w)."""
        return at_least_float32(self.quant_conv(self.encoder(images)))

    def posterior(self, images: Tensor) -> Posterior:
        """Mean and standard deviation of the latent."""
        return split_moments(self.moments(images))

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Images of an unscaled latent, not clamped."""
        images: Tensor = self.decoder(self.post_quant_conv(latent))
        return images

    # Training

    def training_pass(self, images: Tensor, noise: Noise) -> TrainingPass:
        """Decodes a sample of the posterior; the term ``kl`` is its divergence from N(0, 1), in nats per value."""
        mean, std = self.posterior(images)
        latent = mean + std * noise.normal(*mean.shape[1:])
        size = mean[0].numel()
        square = (mean.square() + std.square()).flatten(1).mean(1)
        return TrainingPass(
            self.decode_latent(latent),
            {"kl": kl_divergence(mean, std) / size},
            {"latent_square": square.detach()},
        )

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight."""
        return self.decoder.last_layer

    @torch.no_grad()
    def update_scale(self, latent_square: Tensor, decay: float = 0.99) -> None:
        """Moves the latent scale towards a batch with this mean square; a scale given by the config stays."""
        if self.config.latent_scale is None:
            before = self.latent_scale.square().reciprocal() if self.latent_scale > 0 else latent_square
            self.latent_scale.copy_((decay * before + (1 - decay) * latent_square).rsqrt())


def latent_to_tokens(latent: Tensor, patch_size: int) -> Tensor:
    """(B, C, h, w) to (B, N, C p p): row-major patches, values ordered (channel, row, column)."""
    return rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=patch_size, q=patch_size)


def split_moments(moments: Tensor) -> Posterior:
    """Mean and standard deviation of (B, 2 C, h, w) moments; log variances are clamped as published."""
    mean, log_variance = moments.chunk(2, dim=1)
    return Posterior(mean, (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp())


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """Divergence of a diagonal Gaussian from N(0, 1) in nats, summed over all but the first axis, (B,)."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1)
