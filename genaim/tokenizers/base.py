"""What a tokenizer is: images to tokens and back."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genaim.core.noise import Noise


class Tokenizer(nn.Module, ABC):
    """Turns images into N tokens per image and tokens into images.

    Discrete tokens are (B, N) int64 in ``[0, codebook_size)``; continuous ones are (B, N, C) float.
    """

    config: Any
    """The config that it was built from."""
    image_size: int
    """Side of the square images, in pixels."""
    num_tokens: int
    """Tokens N of an image."""
    codebook_size: int | None = None
    """Codes V of discrete tokens; None where tokens are continuous."""
    token_channels: int | None = None
    """Channels C of continuous tokens; None where tokens are discrete."""
    pixel_levels: int | None = None
    """Levels of each channel where tokens are pixels themselves, so that exact bits per dimension can be stated."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens, for orders over a grid.

        Raises:
            ValueError: If the tokens are not one grid.
        """

    @abstractmethod
    def encode(self, images: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Tokens of images.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            noise: Where a posterior is sampled from; None takes its mode.

        Returns:
            (B, N) int64 or (B, N, C) float.
        """

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens, (B, 3, H, W) in [-1, 1]."""

    def encode_for_cache(self, images: Tensor) -> Tensor:
        """What a token cache keeps of images, from which `from_cache` draws tokens; by default the tokens."""
        return self.encode(images)

    def from_cache(self, stored: Tensor, noise: Noise) -> Tensor:
        """Tokens of what `encode_for_cache` gave; a posterior is sampled anew each time."""
        return stored

    def token_mask(self, keep: Tensor, grow: int = 0) -> Tensor:
        """Tokens whose area lies wholly inside the kept pixels.

        Args:
            keep: (B, H, W) bool, True where a pixel is kept.
            grow: Tokens around those whose area is not kept whole that count as not kept either: an encoder's
                convolutions look further than the area of a token.

        Returns:
            (B, N) bool, True where the area is kept whole.
        """
        return self.hidden_cells(keep, self.grid, grow).flatten(1) == 0

    def known_tokens(self, keep: Tensor, grow: int = 0) -> Tensor:
        """Tokens that inpainting takes as given, (B, N) bool; arguments as those of `token_mask`.

        They are encoded from an image whose holes are filled smoothly.
        """
        return self.token_mask(keep, grow)

    @staticmethod
    def hidden_cells(keep: Tensor, grid: tuple[int, int], grow: int) -> Tensor:
        """Cells of a grid that hold a hidden pixel, and ``grow`` cells around them, (B, 1, *grid) float, 0 or 1."""
        hidden = F.adaptive_max_pool2d((~keep).float().unsqueeze(1), grid)
        return F.max_pool2d(hidden, 2 * grow + 1, stride=1, padding=grow)

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless images are (B, 3, image_size, image_size)."""
        size = self.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f"{type(self).__name__} takes images (B, 3, {size}, {size}), not {tuple(images.shape)}; resize them."
            )


class TrainingPass(NamedTuple):
    """What a tokenizer computes for a training step."""

    reconstruction: Tensor
    """(B, 3, H, W), not clamped."""
    terms: dict[str, Tensor]
    """Terms of the loss besides the reconstruction's, (B,) each; their names are fields of the loss config."""
    outputs: dict[str, Tensor]
    """What the training task needs after the step, without gradient."""


class TrainableTokenizer(Tokenizer):
    """A tokenizer that our trainer can train."""

    @abstractmethod
    def training_pass(self, images: Tensor, noise: Noise) -> TrainingPass:
        """Encodes and decodes images (B, 3, H, W) in [-1, 1] with gradients."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The decoder's last weight, against which adversarial and reconstruction gradients are balanced."""


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same weights, up to the rounding of 16-bit files.

    bfloat16 rounds by 2^-9 at most, and below 1e-6 float16 has lost digits.
    """
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        first[key].shape == second[key].shape
        and torch.allclose(first[key].cpu(), second[key].cpu(), rtol=2**-8, atol=1e-6)
        for key in first
    )


def fingerprint(module: nn.Module) -> str:
    """A short hash of a module's weights, for cache keys and records; 16 hex digits."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
