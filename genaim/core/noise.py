"""Random numbers that belong to an image, not to a batch.

Every value is a pure function of (seed, image index, draw, element): the key of an image and draw starts a SplitMix64
sequence (Steele et al. 2014, https://doi.org/10.1145/2714064.2660195) and element ``i`` is its i-th output. Nothing is
advanced, so batch size, process count, device and interruption cannot change what an image receives.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # SplitMix64 constants as signed 64-bit integers, which wrap in PyTorch
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


class Noise(Protocol):
    """What samplers and losses draw from; one row per image."""

    def uniform(self, *shape: int) -> Tensor:
        """The next draw from the open interval (0, 1), (B, *shape) float32."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """The next standard normal draw, (B, *shape) float32."""
        ...


class NoiseSource:
    """Noise of a batch of images, keyed by (seed, image index, draw).

    The draw is counted by the source: every call to `uniform` or `normal` is the next draw of all rows. In training the
    seed is `step_seed(seed, step)` and the index is the sample's position in the global batch.
    """

    def __init__(self, seed: int, indices: Tensor, draw: int = 0) -> None:
        """Keeps the keys; draws nothing.

        Args:
            seed: Any integer; equal seeds give equal images.
            indices: Index of each row's image in the run, (B,) int64, on the device where noise is wanted.
            draw: Number of the first draw.
        """
        self.seed, self.draw, self.device = seed, draw, indices.device
        self.indices = exact(indices).to(torch.int64)

    def uniform(self, *shape: int) -> Tensor:
        """The next draw from the open interval (0, 1), (B, *shape) float32."""
        return self._uniform(shape).float().to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """The next standard normal draw (Box-Muller), (B, *shape) float32.

        Computed in float64 and rounded: vectorised and scalar logarithms differ in their last bit, and which of the two
        an element meets depends on the batch size. Radius and angle of an element lie side by side, so that a longer
        draw, as of a row whose batch mates predict more tokens, begins with the shorter one.
        """
        radius, angle = self._uniform((*shape, 2)).unbind(-1)
        return (torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)).float().to(self.device)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        key = _mix(_mix(self.indices + _wrap(self.seed * _GAMMA)) + _wrap((self.draw + 1) * _GAMMA))  # (B,)
        self.draw += 1
        count = torch.arange(1, math.prod(shape) + 1, device=key.device)
        bits = _mix(key[:, None] + count * _GAMMA)
        # 23 bits and a half: exact in float32 and never 0 or 1, so logarithms are finite.
        return ((_shift(bits, 41).double() + 0.5) * 2.0**-23).view(len(key), *shape)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers, float32; in float64 inside, for the same reason as `normal`."""
    noise = -torch.log(-torch.log(exact(uniform).double()))
    return noise.float().to(uniform.device)


def logistic(uniform: Tensor) -> Tensor:
    """Standard logistic noise from uniform numbers, float32; in float64 inside, as `gumbel`."""
    noise = exact(uniform).double()
    return (noise.log() - (-noise).log1p()).float().to(uniform.device)


def ranks(values: Tensor) -> Tensor:
    """Rank of every entry in its row, (B, N) to (B, N) int64; equal ones by position, alike on every device."""
    return values.argsort(dim=1, stable=True).argsort(1)


def exact(tensor: Tensor) -> Tensor:
    """The tensor where float64 can be computed: MPS devices have none, so their noise comes from the CPU."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def step_seed(seed: int, step: int) -> int:
    """The seed of one training step, for a `NoiseSource` over the samples of its global batch."""
    return int(_mix(torch.tensor(_wrap(seed * 0x632BE59BD9B4E019 + step))))


def _wrap(value: int) -> int:
    """A Python integer reduced to the signed 64-bit range."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (PyTorch's ``>>`` keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The output function of SplitMix64, a bijection of 64-bit integers."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)
