"""What an encoder is: images to features, pre-trained from images alone. It generates nothing.

Features are outputs of a transformer's blocks. `block_numbers` and `combined` choose and join them, for encoders and
for generators that give features too.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genaim.core.noise import Noise
from genaim.models.base import Loss

Layers = int | str | Sequence[int]
"""A block by number, from 0 (negative from the end); several, to be averaged; ``last6`` and the like; or ``norm``."""


class Encoder(nn.Module, ABC):
    """Turns images into features."""

    config: Any
    """The config that it was built from."""
    image_size: int
    """Side of the square images that it is pre-trained on, in pixels."""
    num_tokens: int
    """Features N of such an image."""

    def features(
        self,
        images: Tensor,
        *,
        layer: Layers | None = None,
        pool: Literal["mean"] | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Features of images; blocks behind the last one that is asked for are not computed.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            layer: Which blocks' outputs, or ``norm`` for the final norm's; None takes those of the config.
            pool: "mean" averages over the image.
            steps: Step id of every position for a causal or prefix mask (see `genaim.core.masks`), (N,) or (B, N)
                int64; None attends everywhere.

        Returns:
            (B, N, D), or (B, D) when pooled.

        Raises:
            ValueError: If there is no such layer, or the images do not fit.
        """
        return combined(self.hidden_states(images, steps=steps), self.layers(layer), self.final_norm, pool)

    @abstractmethod
    def hidden_states(self, images: Tensor, *, steps: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the output of every block in turn, (B, N, D); arguments are those of `features`."""

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm behind the last block, (B, N, D) to the same."""

    @abstractmethod
    def layers(self, layer: Layers | None) -> list[int]:
        """Numbers from 0 of the blocks that a choice of `features` names; none for the final norm.

        Raises:
            ValueError: If there is no such block.
        """

    @abstractmethod
    def loss(self, images: Tensor, *, noise: Noise) -> Loss:
        """Pre-training loss of images (B, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def show(self, images: Tensor, *, noise: Noise) -> Tensor:
        """What pre-training predicts of images, as images (B, 3, H, W)."""


def block_numbers(layer: Layers, depth: int) -> list[int]:
    """Numbers from 0 of the blocks that a choice names; none for the final norm.

    Raises:
        ValueError: If there is no such block.
    """
    if layer == "norm":
        return []
    last = re.fullmatch(r"last(\d+)", layer) if isinstance(layer, str) else None
    wanted = range(-int(last[1]), 0) if last else [layer] if isinstance(layer, int) else layer
    if isinstance(wanted, str) or not wanted or not all(-depth <= index < depth for index in wanted):
        raise ValueError(
            f"layer {layer!r} is not in this model of {depth} blocks; give numbers from {-depth} to {depth - 1}, "
            f"'last1' to 'last{depth}', or 'norm'."
        )
    return [index % depth for index in wanted]


def combined(
    hidden_states: Iterable[Tensor], layers: Sequence[int], final_norm: Callable[[Tensor], Tensor], pool: str | None
) -> Tensor:
    """Features of the chosen blocks; those behind the last one that is asked for are not computed.

    Args:
        hidden_states: Outputs of the blocks in turn, (B, N, D) each.
        layers: Numbers of the blocks to average, as `block_numbers` gives them.
        final_norm: The norm behind the last block, taken where there are no numbers.
        pool: "mean" averages over the image, None does not.

    Returns:
        (B, N, D), or (B, D) when pooled.

    Raises:
        ValueError: If `pool` is something else.
    """
    if pool not in (None, "mean"):
        raise ValueError(f"pool is '{pool}'; use 'mean', or None for the features of all patches.")
    chosen: list[Tensor] = []
    for index, hidden in enumerate(hidden_states):
        chosen += [hidden] * layers.count(index)
        if len(chosen) == len(layers) > 0:
            break
    out = torch.stack(chosen).mean(0) if layers else final_norm(hidden)
    return out.mean(1) if pool else out
