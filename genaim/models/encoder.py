"""What an encoder is: images to features, pre-trained from images alone. It generates nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

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

    @abstractmethod
    def features(
        self,
        images: Tensor,
        *,
        layer: Layers | None = None,
        pool: Literal["mean"] | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Features of images.

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

    @abstractmethod
    def loss(self, images: Tensor, *, noise: Noise) -> Loss:
        """Pre-training loss of images (B, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def show(self, images: Tensor, *, noise: Noise) -> Tensor:
        """What pre-training predicts of images, as images (B, 3, H, W)."""
