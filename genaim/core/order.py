"""Orders: which tokens of an image are predicted, and when.

An order gives every image position a step id for training (see `masks`) and yields the steps of generation. Next-scale
prediction (VAR) is the order `ScaleOrder` with a plain categorical head; next-patch prediction (AIM) is `RasterOrder`.
To add one: a class here, a line in `ORDERS`, and its name in the field `order` of the configs that may choose it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from genaim.core.noise import Noise, NoiseSource, ranks


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
            ValueError: If the order has a fixed number of steps and another is asked for, or a random one has no noise.
        """

    def sketch(self, share: float, noise: Noise) -> Tensor:
        """Tokens that are kept of an image which is to be redrawn in part: a random share of the positions.

        Args:
            share: In [0, 1].
            noise: One row per image.

        Returns:
            (B, N) bool.
        """
        return ranks(noise.uniform(self.num_tokens)) < round(share * self.num_tokens)

    def check_num_steps(self, num_steps: int | None, own: int) -> None:
        """Raises ValueError if a fixed order is asked for another number of steps than its own."""
        if num_steps not in (None, own):
            kind = next((kind for kind, order in ORDERS.items() if order is type(self)), type(self).__name__)
            raise ValueError(
                f"{num_steps} steps are asked for, but the order '{kind}' always takes {own}; leave the steps out."
            )


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

    def sketch(self, share: float, noise: Noise) -> Tensor:
        """The first scales: a share of their number, (B, N) bool; one row is like the other."""
        kept = round(share * len(self.sizes))
        batch_size = len(noise.uniform())
        return (self.step_ids() < kept).expand(batch_size, -1)


class SequenceOrder(Order):
    """One token at a time, along a permutation of the positions of a grid."""

    def __init__(self, height: int, width: int) -> None:
        """Takes rows and columns of the grid of tokens."""
        self.height, self.width, self.num_tokens = height, width, height * width

    @abstractmethod
    def path(self) -> Tensor:
        """Positions in the order in which they are predicted, (N,) int64."""

    def sequence(self, batch_size: int, noise: Noise | None = None, device: torch.device | None = None) -> Tensor:
        """The path of every image, (B, N) int64; ``noise`` is for orders that differ between images."""
        return self.path().to(device).expand(batch_size, -1)

    def step_ids(self) -> Tensor:
        """Rank of every position on the path, (N,) int64."""
        return self.path().argsort()

    def steps(self, known: Tensor, num_steps: int | None = None, noise: Noise | None = None) -> Iterator[Step]:
        """Yields each row's unknown positions, one a step; rows with fewer of them end with -1."""
        missing = int((~known).sum(1).max())
        self.check_num_steps(num_steps, missing)
        path = self.sequence(known.shape[0], noise, known.device)
        hidden_first = known_first(path, ~known)
        queue = torch.where(known.gather(1, hidden_first), -1, hidden_first)
        total_known = known.sum(1)
        for index in range(missing):
            total_known = total_known + (queue[:, index] >= 0)
            yield Step(queue[:, index : index + 1], total_known / self.num_tokens, index, missing)


class RasterOrder(SequenceOrder):
    """Row by row (next-patch prediction)."""

    def path(self) -> Tensor:
        """0, 1, 2, ..."""
        return torch.arange(self.num_tokens, device="cpu")


class SpiralOrder(SequenceOrder):
    """Outwards from the middle, clockwise (AIM, El-Nouby et al. 2024, https://arxiv.org/abs/2401.08541, table 3)."""

    def path(self) -> Tensor:
        """Walks sides of length 1, 1, 2, 2, 3, 3, ... and keeps what lies on the grid."""
        row, column, found = (self.height - 1) // 2, (self.width - 1) // 2, list[int]()
        directions, side = cycle(((0, 1), (1, 0), (0, -1), (-1, 0))), 0
        while len(found) < self.num_tokens:
            side += 1
            for down, right in (next(directions), next(directions)):
                for _ in range(side):
                    if 0 <= row < self.height and 0 <= column < self.width:
                        found.append(row * self.width + column)
                    row, column = row + down, column + right
        return torch.tensor(found, device="cpu")


class CheckerboardOrder(SequenceOrder):
    """The dark squares of a chessboard row by row, then the light ones (AIM, table 3)."""

    def path(self) -> Tensor:
        """Positions whose row and column add up to an even number come first."""
        positions = torch.arange(self.num_tokens, device="cpu")
        light = (positions // self.width + positions % self.width) % 2
        return light.argsort(stable=True)


class FixedRandomOrder(SequenceOrder):
    """One random permutation, the same for all images (AIM, table 3)."""

    def path(self) -> Tensor:
        """Follows from the size of the grid alone."""
        source = NoiseSource(0, torch.zeros(1, dtype=torch.int64, device="cpu"))
        return source.uniform(self.num_tokens)[0].argsort(stable=True)


class RandomSequenceOrder(SequenceOrder):
    """A random permutation for every image, one token at a time (Table 1 of MAR, "random, causal")."""

    def path(self) -> Tensor:
        """Every image has its own; this one stands for them in `step_ids`."""
        return torch.arange(self.num_tokens, device="cpu")

    def sequence(self, batch_size: int, noise: Noise | None = None, device: torch.device | None = None) -> Tensor:
        """Draws the path of every image."""
        if noise is None:
            raise ValueError("a random order draws from a noise source; pass noise.")
        return noise.uniform(self.num_tokens).argsort(dim=1, stable=True).to(device)


class RandomOrder(Order):
    """Random sets of positions, few at first and many at last (MAR, Li et al. 2024, arXiv 2406.11838, section 3.4).

    Like MaskGIT (Chang et al. 2022, arXiv 2202.04200), ``floor(N cos(pi / 2 * k / K))`` of N hidden tokens stay hidden
    after step k of K, but at least one is predicted in each step and at least one left for the last.
    """

    def __init__(self, height: int, width: int, num_steps: int = 64) -> None:
        """Takes the grid, and the number of steps when none is asked for."""
        self.num_tokens, self.num_steps = height * width, num_steps

    def step_ids(self) -> Tensor:
        """Zeros: every token may attend to every other one, (N,) int64."""
        return torch.zeros(self.num_tokens, dtype=torch.int64, device="cpu")

    def steps(self, known: Tensor, num_steps: int | None = None, noise: Noise | None = None) -> Iterator[Step]:
        """Yields random sets of each row's unknown positions; a row with fewer of them than steps takes one a step.

        The share of the last step is short of 1 by one token, since the published guidance schedule counts so
        (github.com/LTH14/mar, models/mar.py, sample_tokens).

        Raises:
            ValueError: If the number of steps is not positive.
        """
        if noise is None:
            raise ValueError("a random order draws from a noise source; pass noise.")
        total = self.num_steps if num_steps is None else num_steps
        if total < 1:
            raise ValueError(f"{total} steps are asked for; ask for 1 or more.")
        hidden = ~known
        order = noise.uniform(self.num_tokens).argsort(dim=1, stable=True)
        order = known_first(order, hidden.to(order.device))  # hidden positions to the front
        rank = order.argsort(1).to(known.device)  # of the hidden ones, the last are predicted first
        plans = [self._remaining(count, total) for count in hidden.sum(1).tolist()]
        for index in range(total):
            before, after = (torch.tensor([p[k] for p in plans], device=known.device) for k in (index, index + 1))
            chosen = (rank >= after[:, None]) & (rank < before[:, None])
            width = max(plan[index] - plan[index + 1] for plan in plans)
            if width == 0:  # no row has any left: none has an empty step before its last one
                return
            # a stable sort brings the chosen positions to the front, row-major
            front = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
            positions = torch.where(chosen.gather(1, front), front, -1)
            share = 1 - after.clamp_min(1) / self.num_tokens
            yield Step(positions, share, index, total)

    def _remaining(self, count: int, total: int) -> list[int]:
        """Hidden tokens before the first step, after it, ..., after the last of ``total`` steps.

        A row that hides fewer tokens than there are steps is done early, without an empty step in between, so that its
        draws do not depend on which steps its batch mates need. (The cosine lies above its chord: with ``count >= own``
        at least one token is left for each step to come.)
        """
        remaining, own = [count], min(count, total)
        for step in range(1, own):
            wanted = math.floor(count * math.cos(math.pi / 2 * step / own))
            remaining.append(min(remaining[-1] - 1, wanted))
        return remaining + [0] * (total + 1 - len(remaining))


def known_first(path: Tensor, known: Tensor) -> Tensor:
    """Reorders paths so that known positions come first, both parts in the order of the path.

    Args:
        path: Positions in order, (B, N) int64.
        known: (B, N) bool over positions.

    Returns:
        (B, N) int64.
    """
    return path.gather(1, (~known.gather(1, path)).to(torch.int8).argsort(dim=1, stable=True))


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


ORDERS = {
    "scales": ScaleOrder,
    "raster": RasterOrder,
    "spiral": SpiralOrder,
    "checkerboard": CheckerboardOrder,
    "fixed_random": FixedRandomOrder,
    "random_sequence": RandomSequenceOrder,
    "random": RandomOrder,
}
