"""What a head is: the distribution of a token given its features, to train and to sample."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from genaim.config import Config
from genaim.core.inference import ready_linears
from genaim.core.noise import Noise
from genaim.heads.schedule import NUM_TIMESTEPS

Measure = Literal["probability", "density"]
"""Probability of tokens that can be counted (codes, 8-bit pixels), or density of continuous ones."""


class SamplingOptions(Config):
    """How tokens are drawn. None switches an option off; a head raises on an option that it cannot honour."""

    temperature: float = 1.0
    """Below 1 prefers likely tokens; 0 takes the best."""
    top_k: int | None = None
    """Draw among the k most likely codes only."""
    top_p: float | None = None
    """Draw among the most likely codes that together hold this probability."""
    diffusion_steps: int | None = None
    """Steps of a diffusion head for each token; None takes the head's own."""
    scheduler: str | None = None
    """Sampler of a diffusion head: ddim, dpmsolver++, euler, or a scheduler class of diffusers. ``own``, as None, is
    the head's own: ancestral steps for noise prediction, Heun's method for flow."""

    def model_post_init(self, context: object) -> None:
        """Checks the ranges."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more and finite, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be 1 or more, not {self.top_k}; leave it out to draw among all codes")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}; leave it out to draw among all codes")
        if self.diffusion_steps is not None and not 1 <= self.diffusion_steps <= NUM_TIMESTEPS:
            raise ValueError(f"diffusion_steps must be in 1 to {NUM_TIMESTEPS}, not {self.diffusion_steps}")


class TokenSpec(NamedTuple):
    """What a head must know of the tokens that it predicts."""

    codebook_size: int | None
    """Codes V of discrete tokens, else None."""
    channels: int | None
    """Channels C of continuous tokens, else None."""
    levels: int | None
    """Levels of each channel where tokens are 8-bit pixels in [-1, 1], else None."""


class HeadConfig(Config):
    """What every head is configured by."""

    kind: str
    """Name in the registry of heads."""
    width: int = 0
    """Channels D of the features; filled in by the model."""

    def fitted(self, width: int, tokens: TokenSpec) -> Self:
        """The config with the width of a model and the shape of its tokens.

        Raises:
            ValueError: If the head cannot predict such tokens.
        """
        return self.model_copy(update={"width": width})


class ContinuousHeadConfig(HeadConfig):
    """A head of continuous tokens."""

    channels: int = 0
    """Channels C of a token; filled in by the model."""

    def fitted(self, width: int, tokens: TokenSpec) -> Self:
        """The config with width and channels filled in."""
        if tokens.channels is None:
            raise ValueError(
                f"head '{self.kind}' predicts continuous tokens, but the tokenizer gives codes; "
                "use the head 'categorical'."
            )
        return self.model_copy(update={"width": width, "channels": tokens.channels})


class Head(nn.Module, ABC):
    """Turns features into the distribution of a token."""

    config: Any
    """The config that it was built from."""
    options: ClassVar[tuple[str, ...]]
    """Names of the `SamplingOptions` that this head honours."""
    float32_layers: ClassVar[tuple[str, ...]]
    """Sub-modules that are computed in float32, whatever autocast says (`in_float32`)."""
    loss_unit: str = "nats per token"
    """What the mean of the loss over tokens is, in words."""
    measure: Measure | None = None
    """What `log_prob` is the logarithm of; None where the head has none."""

    @abstractmethod
    def loss(self, features: Tensor, targets: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Training loss of every token, unreduced.

        Args:
            features: (..., D).
            targets: Tokens, (...) int64 or (..., C) float.
            noise: Source of random numbers, for heads that need them.

        Returns:
            (...) float32, in nats where the head has a density.

        Raises:
            ValueError: If the head needs noise and there is none.
        """

    @abstractmethod
    def sample(
        self,
        features: Tensor,
        options: SamplingOptions,
        *,
        uncond_features: Tensor | None = None,
        guidance_scale: Tensor | float = 1.0,
        noise: Noise,
    ) -> Tensor:
        """Draws tokens.

        Args:
            features: (B, n, D).
            options: How to draw.
            uncond_features: Features under the null condition, (B, n, D), or None without guidance.
            guidance_scale: ``uncond + guidance_scale * (cond - uncond)``; (B,) or a number, 1.0 is off.
            noise: Source of random numbers, one row per image.

        Returns:
            Tokens, (B, n) int64 or (B, n, C) float.

        Raises:
            ValueError: If an option is set that the head cannot honour.
        """

    def log_prob(self, features: Tensor, targets: Tensor) -> Tensor:
        """Exact log-probability of every token in nats, (...).

        Raises:
            ValueError: If the head has none.
        """
        raise ValueError(f"{type(self).__name__} has no exact density; evaluate its samples instead.")

    def prepare(self, dtype: torch.dtype) -> None:
        """Readies the layers for sampling under autocast to ``dtype``, in place; see `samplers.prepare`."""
        whole = tuple(f"{name}." for name in self.float32_layers)
        ready_linears(
            self, lambda name: torch.promote_types(dtype, torch.float32) if f"{name}.".startswith(whole) else dtype
        )

    def check_options(self, options: SamplingOptions) -> None:
        """Raises ValueError, naming the option, if one is set that this head does not honour."""
        for name, field in SamplingOptions.model_fields.items():
            if name not in self.options and getattr(options, name) != field.default:
                asked, *known = (option.replace("_", "-") for option in (name, *self.options))
                raise ValueError(
                    f"a model with the head '{self.config.kind}' takes no {asked}; leave it out. It takes "
                    f"{', '.join(known) or 'no option'}."
                )


def guide(cond: Tensor, uncond: Tensor | None, guidance_scale: Tensor | float) -> Tensor:
    """The one guidance formula, ``uncond + guidance_scale * (cond - uncond)``.

    Args:
        cond: Conditional prediction, (B, ...).
        uncond: Unconditional prediction, (B, ...), or None to return ``cond``.
        guidance_scale: (B,) or a number; 1.0 returns ``cond`` up to rounding.
    """
    if uncond is None:
        return cond
    if isinstance(guidance_scale, Tensor):
        guidance_scale = guidance_scale.view(-1, *[1] * (cond.dim() - 1)).to(cond.dtype)
    return torch.lerp(uncond, cond, guidance_scale)
