"""Orders: which tokens of an image are predicted, and when.

An order gives every image position a step id for training (see `masks`) and yields the steps of generation. Next-scale
prediction (VAR) is the order `ScaleOrder` with a plain categorical head; next-patch prediction (AIM) is `RasterOrder`.
To add one: a class here, and a line in `ORDERS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genaim.core.noise import Noise


class Step(NamedTuple):
    """One step of generation."""

    positions: Tensor
    """Positions that are predicted, (B, n) int64; -1 is none: not fed, sampled or committed."""
    share: Tensor
    """Share of each image's tokens that is known when the step ends, (B,) float32."""
    number: int
    """Number of the step, from 0."""
    total: int
    """Number of all steps."""


class Order(ABC):
    """Which of N image positions are predicted together, and when."""

    num_tokens: int

    @abstractmethod
    def step_ids(self) -> Tensor:
        """Step id of every image position, (N,) int64."""

    @abstractmethod
    def steps(self, known: Tensor, num_steps: int | None = None, noise: Noise | None = None) -> Iterator[Step]:
        """Yields the steps that generate an image.

        Args:
            known: True where a token is given beforehand, (B, N) bool.
            num_steps: Number of steps, where the order can choose it; None takes its own.
            noise: Source of random orders.

        Raises:
            ValueError: If the order has a fixed number of steps and another is asked for.
        """

    def check_num_steps(self, num_steps: int | None, own: int) -> None:
        """Raises ValueError if a fixed order is asked for another number of steps than its own."""
        if num_steps not in (None, own):
            raise ValueError(f"num_steps is {num_steps}, but {type(self).__name__} always takes {own}; leave it out.")


class ScaleOrder(Order):
    """All tokens of one scale at once, from coarse to fine (VAR, Tian et al. 2024, section 3.1)."""

    def __init__(self, patch_nums: Sequence[int]) -> None:
        """Takes the side of every scale's token map."""
        self.patch_nums = tuple(patch_nums)
        self.sizes = [side * side for side in patch_nums]
        self.starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self.num_tokens = sum(self.sizes)

    def step_ids(self) -> Tensor:
        """Index of the scale of every position, (N,) int64."""
        return torch.tensor([k for k, size in enumerate(self.sizes) for _ in range(size)], device="cpu")

    def steps(self, known: Tensor, num_steps: int | None = None, noise: Noise | None = None) -> Iterator[Step]:
        """Yields one step per scale; given tokens are predicted too, since every scale is fed whole."""
        count = len(self.sizes)
        self.check_num_steps(num_steps, count)
        batch_size = known.shape[0]
        for index, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            positions = torch.arange(start, start + size, device=known.device).expand(batch_size, -1)
            share = torch.full((batch_size,), (start + size) / self.num_tokens, device=known.device)
            yield Step(positions, share, index, count)


class RasterOrder(Order):
    """One token at a time, row by row (next-patch prediction)."""

    def __init__(self, num_tokens: int) -> None:
        """Takes the number of tokens of an image."""
        self.num_tokens = num_tokens

    def step_ids(self) -> Tensor:
        """0, 1, 2, ..., (N,) int64."""
        return torch.arange(self.num_tokens, device="cpu")

    def steps(self, known: Tensor, num_steps: int | None = None, noise: Noise | None = None) -> Iterator[Step]:
        """Yields each row's unknown positions, one a step; rows with fewer of them end with -1."""
        missing = int((~known).sum(1).max())
        self.check_num_steps(num_steps, missing)
        positions = torch.arange(self.num_tokens, device=known.device).expand_as(known)
        # A stable sort brings unknown positions to the front, in raster order.
        queue = torch.where(known, -1, positions).gather(1, known.to(torch.int8).argsort(dim=1, stable=True))
        total_known = known.sum(1)
        for index in range(missing):
            total_known = total_known + (queue[:, index] >= 0)
            yield Step(queue[:, index : index + 1], total_known / self.num_tokens, index, missing)


def prefix_steps(prefix_length: Tensor, num_tokens: int) -> Tensor:
    """Step ids of a sequence whose first elements see each other (AIM, El-Nouby et al. 2024, figure 3).

    Args:
        prefix_length: Length of each row's prefix, (B,) int64.
        num_tokens: Elements of the sequence.

    Returns:
        (B, num_tokens) int64: 0 inside the prefix, the position behind it.
    """
    positions = torch.arange(num_tokens, device=prefix_length.device)
    return torch.where(positions < prefix_length[:, None], 0, positions)


ORDERS = {"scales": ScaleOrder, "raster": RasterOrder}
