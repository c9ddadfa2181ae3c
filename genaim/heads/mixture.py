"""Mixture head: k components over whole tokens, whose channels are independent, or coupled, given the component.

``gaussian`` is the head of GIVT (Tschannen et al. 2023, https://arxiv.org/abs/2312.02116, section 3.2) for latents.
``discretized_logistic`` is for 8-bit pixels: the probability of a level is the mass of its bin, and the end bins are
open (PixelCNN++, Salimans et al. 2017, https://arxiv.org/abs/1701.05517, eq. 2), so bits per dimension are exact. With
``coupled`` the mean of a channel moves linearly with the channels before it, as between the colours of a pixel there
(their eq. 3), here between all channels of a patch.
"""

from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genaim.core.layers import to_levels
from genaim.core.noise import Noise, gumbel, logistic
from genaim.heads.base import ContinuousHeadConfig, Head, SamplingOptions, TokenSpec
from genaim.heads.gaussian import gaussian_log_prob
from genaim.heads.mlp import ResidualMLP


class MixtureHeadConfig(ContinuousHeadConfig):
    """A mixture of k components over whole tokens."""

    kind: Literal["mixture"] = "mixture"
    """Name in the registry of heads."""
    density: Literal["gaussian", "discretized_logistic"] = "gaussian"
    """Component: gaussian for latents, discretized_logistic for 8-bit pixels."""
    components: int = Field(16, ge=1)
    """Components k."""
    coupled: bool = False
    """Means follow the channels before them, with C (C - 1) / 2 coefficients for every component."""
    depth: int = Field(0, ge=0)
    """Residual blocks before the parameters."""
    hidden: int = Field(256, ge=1)
    """Width of these blocks."""
    min_log_scale: float = -7.0
    """Log scales are at least this, so that a density cannot grow without bound."""
    guidance_candidates: int = Field(16, ge=2)
    """Candidates that guidance chooses from; more are closer to the guided density."""
    levels: int | None = None
    """Levels of 8-bit pixels; filled in by the model."""

    def fitted(self, width: int, tokens: TokenSpec) -> Self:
        """The config with width, channels and levels filled in."""
        if self.density == "discretized_logistic" and tokens.levels is None:
            raise ValueError(
                "density 'discretized_logistic' is for 8-bit pixels (tokenizer 'patches'); use density 'gaussian' "
                "for latents."
            )
        return super().fitted(width, tokens).model_copy(update={"levels": tokens.levels})


class Mixture(NamedTuple):
    """Parameters of a mixture."""

    logits: Tensor
    """Of the components, (..., k)."""
    means: Tensor
    """(..., k, C)."""
    log_scales: Tensor
    """(..., k, C)."""
    coupling: Tensor | None
    """Coefficients of earlier channels (columns) in the means of later ones (rows), (..., k, C, C); 0 elsewhere."""

    def unsqueeze(self, dim: int) -> "Mixture":
        """A new axis in every parameter."""
        coupling = None if self.coupling is None else self.coupling.unsqueeze(dim)
        return Mixture(self.logits.unsqueeze(dim), self.means.unsqueeze(dim), self.log_scales.unsqueeze(dim), coupling)

    def means_given(self, x: Tensor) -> Tensor:
        """Means of all channels given the earlier ones of x, (..., 1 or k, C) to (..., k, C)."""
        if self.coupling is None:
            return self.means
        return self.means + (self.coupling * x.unsqueeze(-2)).sum(-1)


class MixtureHead(Head):
    """A mixture of Gaussians or discretised logistics over the channels of a token."""

    config: MixtureHeadConfig
    options: ClassVar[tuple[str, ...]] = ("temperature",)
    float32_layers = ("mlp.out",)

    def __init__(self, config: MixtureHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.measure = "probability" if config.density == "discretized_logistic" else "density"
        k, channels = config.components, config.channels
        coefficients = k * channels * (channels - 1) // 2 if config.coupled else 0
        self.sizes = [k, k * channels, k * channels, coefficients]
        self.mlp = ResidualMLP(config.width, config.hidden, config.depth, sum(self.sizes))
        with torch.no_grad():  # means spread over the range of tokens, so that the components differ from the start
            _, means, log_scales, _ = self.mlp.out.bias.split(self.sizes)
            means.uniform_(-1, 1)
            log_scales.fill_(-1.0)

    def mixture(self, features: Tensor) -> Mixture:
        """Parameters at features (..., D)."""
        k, channels = self.config.components, self.config.channels
        logits, means, log_scales, coefficients = self.mlp(features).split(self.sizes, dim=-1)
        means, log_scales = (part.unflatten(-1, (k, channels)) for part in (means, log_scales))
        coupling = None
        if self.config.coupled:
            rows, columns = torch.tril_indices(channels, channels, -1, device=features.device)
            coupling = coefficients.new_zeros(*means.shape, channels)
            coupling[..., rows, columns] = coefficients.unflatten(-1, (k, -1)).tanh()
        return Mixture(logits, means, log_scales.clamp_min(self.config.min_log_scale), coupling)

    def log_prob(self, features: Tensor, targets: Tensor) -> Tensor:
        """Log-probability (of 8-bit pixels) or log-density (of latents) of tokens in nats, (..., C) to (...)."""
        return self._log_prob(self.mixture(features), targets)

    def loss(self, features: Tensor, targets: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Negative log-likelihood in nats, (...)."""
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
        """Draws tokens; temperature divides the components' logits and scales their widths.

        The guided density, p_uncond (p_cond / p_uncond)^scale up to a factor, is no mixture. So candidates are drawn
        from p_cond (tempered), and one of them is chosen with weights (p_cond / p_uncond)^(scale - 1).

        Returns:
            (B, n, C); 8-bit levels in [-1, 1] where the density is discretised.

        Raises:
            ValueError: If guidance is asked for at temperature 0.
        """
        self.check_options(options)
        cond = self.mixture(features)
        if uncond_features is None:
            return self._draw(cond, options.temperature, noise, 1).squeeze(2)
        if options.temperature == 0:
            raise ValueError("guidance of a mixture chooses among draws, and at temperature 0 all are equal; raise it.")
        uncond = self.mixture(uncond_features)
        candidates = self._draw(cond, options.temperature, noise, self.config.guidance_candidates)  # (B, n, M, C)
        wide_cond, wide_uncond = cond.unsqueeze(2), uncond.unsqueeze(2)
        ratio = self._log_prob(wide_cond, candidates) - self._log_prob(wide_uncond, candidates)  # (B, n, M)
        scale = torch.as_tensor(guidance_scale, device=ratio.device, dtype=ratio.dtype).view(-1, 1, 1)
        choice = ((scale - 1) * ratio + gumbel(noise.uniform(*ratio.shape[1:])).to(ratio.dtype)).argmax(-1)
        return candidates.gather(2, choice[..., None, None].expand(-1, -1, 1, candidates.shape[-1])).squeeze(2)

    def _log_prob(self, mixture: Mixture, x: Tensor) -> Tensor:
        x = x.unsqueeze(-2)  # (..., 1, C)
        means = mixture.means_given(x)
        if self.config.density == "discretized_logistic":
            parts = discretized_logistic_log_prob(x, means, mixture.log_scales, self._levels)
        else:
            parts = gaussian_log_prob(x, means, mixture.log_scales)
        return (mixture.logits.log_softmax(-1) + parts.sum(-1)).logsumexp(-1)

    def _draw(self, mixture: Mixture, temperature: float, noise: Noise, count: int) -> Tensor:
        """``count`` independent draws for every token, (B, n, count, C)."""
        tokens, k = mixture.logits.shape[1:]
        logits = mixture.logits.unsqueeze(2)
        uniform = noise.uniform(tokens, count, k)
        perturbed = logits if temperature == 0 else logits / temperature + gumbel(uniform).to(logits.dtype)
        component = perturbed.expand(-1, -1, count, -1).argmax(-1)  # (B, n, count)
        chosen = component[..., None, None]  # (B, n, count, 1, 1)
        mean, log_scale = (
            p.unsqueeze(2).expand(-1, -1, count, -1, -1).gather(3, chosen.expand(-1, -1, -1, 1, p.shape[-1])).squeeze(3)
            for p in (mixture.means, mixture.log_scales)
        )
        deviation = temperature * log_scale.exp() * self._deviates(noise, tokens, count).to(mean.dtype)
        if mixture.coupling is None:
            return self._rounded(mean + deviation)
        wide = mixture.coupling.unsqueeze(2).expand(-1, -1, count, -1, -1, -1)
        coupling = wide.gather(3, chosen[..., None].expand(-1, -1, -1, 1, *wide.shape[-2:])).squeeze(3)
        x = torch.zeros_like(mean)
        for channel in range(mean.shape[-1]):
            moved = mean[..., channel] + (coupling[..., channel, :] * x).sum(-1)
            x[..., channel] = self._rounded(moved + deviation[..., channel])
        return x

    def _deviates(self, noise: Noise, tokens: int, count: int) -> Tensor:
        """Standard normal or logistic numbers, (B, tokens, count, C)."""
        if self.config.density == "gaussian":
            return noise.normal(tokens, count, self.config.channels)
        return logistic(noise.uniform(tokens, count, self.config.channels))

    def _rounded(self, x: Tensor) -> Tensor:
        return to_levels(x, self._levels) if self.config.density == "discretized_logistic" else x

    @property
    def _levels(self) -> int:
        assert self.config.levels is not None, "`fitted` refuses this density for tokens without levels"
        return self.config.levels


def discretized_logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Log-probability of levels in [-1, 1] under logistics (PixelCNN++, eq. 2), in nats.

    With a and b the standardised upper and lower edge of the bin, sigmoid(a) - sigmoid(b) equals
    sigmoid(a) sigmoid(-b) (1 - exp(b - a)), whose logarithm is a sum of terms that neither cancel nor underflow.

    Args:
        x: Levels, broadcastable to the parameters.
        mean: Means.
        log_scale: Logarithms of the scales.
        levels: Number of levels.
    """
    half_bin, inverse = 1 / (levels - 1), (-log_scale).exp()
    upper, lower = (x - mean + half_bin) * inverse, (x - mean - half_bin) * inverse
    below_upper, above_lower = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below_upper + above_lower + torch.log(-torch.expm1(-2 * half_bin * inverse))
    lowest, highest = x < -1 + half_bin, x > 1 - half_bin
    return torch.where(lowest, below_upper, torch.where(highest, above_lower, inside))
