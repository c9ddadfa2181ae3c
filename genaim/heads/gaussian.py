"""Gaussian head: regression of continuous tokens, with unit or learned variance.

With unit variance its loss is half the squared error, up to a constant: the regression of AIM (El-Nouby et al. 2024,
https://arxiv.org/abs/2401.08541, eq. 3) as a likelihood.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from genaim.core.noise import Noise
from genaim.heads.base import ContinuousHeadConfig, Head, SamplingOptions, guide
from genaim.heads.mlp import ResidualMLP


class GaussianHeadConfig(ContinuousHeadConfig):
    """A diagonal Gaussian."""

    kind: Literal["gaussian"] = "gaussian"
    """Name in the registry of heads."""
    variance: Literal["unit", "learned"] = "learned"
    """unit: the mean alone is predicted; learned: a log scale for every channel too."""
    depth: int = Field(0, ge=0)
    """Residual blocks before the parameters; AIM has 12."""
    hidden: int = Field(256, ge=1)
    """Width of these blocks; AIM's is 2048."""
    min_log_scale: float = -7.0
    """Log scales are at least this, so that a density cannot grow without bound."""


class GaussianHead(Head):
    """A mean, and a scale where it is learned, for every channel of a token."""

    config: GaussianHeadConfig
    options: ClassVar[tuple[str, ...]] = ("temperature",)
    float32_layers = ("mlp.out",)
    measure = "density"

    def __init__(self, config: GaussianHeadConfig) -> None:
        super().__init__()
        self.config = config
        factor = 1 if config.variance == "unit" else 2
        self.mlp = ResidualMLP(config.width, config.hidden, config.depth, factor * config.channels)

    def parameters_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale, (..., C) each."""
        out = self.mlp(features)
        if self.config.variance == "unit":
            return out, torch.zeros_like(out)
        mean, log_scale = out.chunk(2, dim=-1)
        return mean, log_scale.clamp_min(self.config.min_log_scale)

    def log_prob(self, features: Tensor, targets: Tensor) -> Tensor:
        """Log-density of tokens in nats, (..., C) to (...)."""
        return gaussian_log_prob(targets, *self.parameters_of(features)).sum(-1)

    def loss(self, features: Tensor, targets: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Negative log-density in nats, (...)."""
        return -self.log_prob(features, targets)

    def sample(
        self,
        features: Tensor,
        options: SamplingOptions,
        *,
        uncond_features: Tensor | None = None,
        guidance_scale: Tensor | float = 1.0,
        noise: Noise,
    ) -> Tensor:
        """Draws tokens; guidance moves the mean, and temperature scales the deviation from it.

        Returns:
            (B, n, C).

        Raises:
            ValueError: If guidance is asked for with learned variance, where the guided density is no Gaussian.
        """
        self.check_options(options)
        mean, log_scale = self.parameters_of(features)
        if uncond_features is not None:
            if self.config.variance == "learned":
                raise ValueError(
                    "guidance needs a Gaussian of unit variance; set guidance 1, or train with head.variance=unit or "
                    "the head 'mixture'."
                )
            mean = guide(mean, self.parameters_of(uncond_features)[0], guidance_scale)
        return mean + options.temperature * log_scale.exp() * noise.normal(*mean.shape[1:]).to(mean.dtype)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-density of every value under its own Gaussian, in nats."""
    return -0.5 * ((x - mean) * (-log_scale).exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)
