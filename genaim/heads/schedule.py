"""The Gaussian diffusion process of the diffusion head: cosine schedule, respacing, ancestral step, variational bound.

Improved DDPM (Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672) as MAR publishes it: 1000 steps, noise
prediction, and a variance between the two bounds (their eq. 15). Tables are computed in float64 and rounded to float32,
as published.
"""

import math
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NUM_TIMESTEPS = 1000


def check_steps(num_steps: int) -> None:
    """Raises ValueError unless the timesteps can be covered in so many steps; a single one returns the noise."""
    if not 2 <= num_steps <= NUM_TIMESTEPS:
        raise ValueError(f"diffusion steps of noise prediction must be 2 to {NUM_TIMESTEPS}, not {num_steps}.")


class Diffusion:
    """A diffusion process over a subset of the 1000 timesteps; index i below is a position in that subset."""

    def __init__(self, num_steps: int = NUM_TIMESTEPS, device: torch.device | str = "cpu") -> None:
        """Takes the number of steps, spread evenly over the timesteps (0, 111, ..., 999 for 10), and where tables live.

        Raises:
            ValueError: If there are more steps than timesteps, or fewer than 2.
        """
        check_steps(num_steps)
        stride = (NUM_TIMESTEPS - 1) / (num_steps - 1)
        sums = accumulate([0.0] + [stride] * (num_steps - 1))  # as published; i * stride rounds otherwise at ties
        kept = sorted({round(timestep) for timestep in sums})
        kept_cumprod = np.cumprod(1 - cosine_betas())[kept]
        betas = 1 - kept_cumprod / np.append(1.0, kept_cumprod[:-1])
        alphas, cumprod = 1 - betas, kept_cumprod
        previous = np.append(1.0, cumprod[:-1])
        variance = betas * (1 - previous) / (1 - cumprod)
        self.num_steps = len(kept)
        self.timesteps = torch.tensor(kept, device=device)
        """The timestep of each index, (steps,) int64."""

        def table(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).float().to(device)

        self.sqrt_cumprod = table(np.sqrt(cumprod))
        self.sqrt_one_minus_cumprod = table(np.sqrt(1 - cumprod))
        self.sqrt_recip_cumprod = table(np.sqrt(1 / cumprod))
        self.sqrt_recip_cumprod_minus_one = table(np.sqrt(1 / cumprod - 1))
        # the posterior variance is 0 at index 0; its logarithm takes the one after it, as published
        self.log_variance = table(np.log(np.append(variance[1:2], variance[1:])))
        self.log_betas = table(np.log(betas))
        self.mean_of_start = table(betas * np.sqrt(previous) / (1 - cumprod))
        self.mean_of_noisy = table((1 - previous) * np.sqrt(alphas) / (1 - cumprod))

        self.amplifies: list[bool] = (betas * np.sqrt(previous / cumprod / (1 - cumprod)) > 1).tolist()
        """Whether the step from an index multiplies errors of the predicted noise by more than 1: of 100 steps the
        first by 320 and the second by 1.5, but those after them by 0.8 and less."""

    def add_noise(self, start: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0): tokens (..., C) at index (...), with standard normal noise (..., C)."""
        return at(self.sqrt_cumprod, index) * start + at(self.sqrt_one_minus_cumprod, index) * noise

    def posterior(self, start: Tensor, noisy: Tensor, index: Tensor) -> "Gaussian":
        """q(x_{t-1} | x_t, x_0)."""
        mean = at(self.mean_of_start, index) * start + at(self.mean_of_noisy, index) * noisy
        return Gaussian(mean, at(self.log_variance, index).expand_as(mean))

    def reverse(self, epsilon: Tensor, fraction: Tensor, noisy: Tensor, index: Tensor) -> "Gaussian":
        """p(x_{t-1} | x_t) from the predicted noise, and where in [-1, 1] between the bounds its log variance lies."""
        start = at(self.sqrt_recip_cumprod, index) * noisy - at(self.sqrt_recip_cumprod_minus_one, index) * epsilon
        mean, lowest = self.posterior(start, noisy, index)
        share = (fraction + 1) / 2
        return Gaussian(mean, share * at(self.log_betas, index) + (1 - share) * lowest)

    def variational_bound(self, start: Tensor, noisy: Tensor, index: Tensor, reverse: "Gaussian") -> Tensor:
        """The bound's term of a timestep in bits per channel, (...): a divergence, or at index 0 a likelihood.

        The likelihood has bins of 1/255, as published, although latents are no 8-bit pixels.
        """
        true = self.posterior(start, noisy, index)
        divergence = gaussian_divergence(true, reverse).mean(-1)
        likelihood = -discretised_log_likelihood(start, reverse).mean(-1)
        return torch.where(index == 0, likelihood, divergence) / math.log(2)


class Gaussian(NamedTuple):
    """A diagonal Gaussian over tokens."""

    mean: Tensor
    """(..., C)."""
    log_variance: Tensor
    """(..., C)."""


def cosine_betas() -> np.ndarray:
    """Betas of the cosine schedule (Nichol and Dhariwal 2021, eq. 17), at most 0.999, (1000,) float64."""

    def cumprod(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = [i / NUM_TIMESTEPS for i in range(NUM_TIMESTEPS + 1)]
    return np.array([min(1 - cumprod(after) / cumprod(before), 0.999) for before, after in pairwise(steps)])


@lru_cache(maxsize=16)
def diffusion_of(num_steps: int, device: torch.device) -> Diffusion:
    """The process of so many steps, its tables made and moved to the device once."""
    return Diffusion(num_steps, device)


def at(values: Tensor, index: Tensor) -> Tensor:
    """Table entries at index (...), as (..., 1)."""
    return values[index].unsqueeze(-1)


def gaussian_divergence(first: Gaussian, second: Gaussian) -> Tensor:
    """KL(first, second) of every channel in nats."""
    difference = first.log_variance - second.log_variance
    shift = (first.mean - second.mean).square() * (-second.log_variance).exp()
    return 0.5 * (difference.exp() - difference - 1 + shift)


def discretised_log_likelihood(x: Tensor, gaussian: Gaussian) -> Tensor:
    """Log-mass of the bin of width 2/255 around every channel in [-1, 1], in nats, with open end bins."""
    inverse = (-0.5 * gaussian.log_variance).exp()
    centred = x - gaussian.mean
    above, below = (_normal_cdf(inverse * (centred + side / 255)) for side in (1, -1))
    log_inside = (above - below).clamp_min(1e-12).log()
    log_low, log_high = above.clamp_min(1e-12).log(), (1 - below).clamp_min(1e-12).log()
    return torch.where(x < -0.999, log_low, torch.where(x > 0.999, log_high, log_inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal distribution that the published loss uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
