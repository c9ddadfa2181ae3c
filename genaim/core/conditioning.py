"""What an image is conditioned on: its class, and a low-resolution version of it; guidance replaces both by null."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genaim.core.positions import sincos_2d

PREFIX_STEP = -1
"""Step id of a prefix (see `masks`): its elements see each other, and all that follow see them."""


class ClassEmbedding(nn.Module):
    """A table of classes; its last row is the null class of unconditional prediction.

    Without classes the table holds the null class alone, and every label is the null class.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        """Takes the number of classes and the channels."""
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.trunc_normal_(self.table.weight, std=(1 / width / 3) ** 0.5)

    def forward(self, labels: Tensor) -> Tensor:
        """Embeddings of labels, (B,) int64 in [0, num_classes] (num_classes is null), to (B, D)."""
        out: Tensor = self.table(labels)
        return out

    def null(self, batch_size: int) -> Tensor:
        """The null label for every row, (B,) int64."""
        return torch.full((batch_size,), self.num_classes, device=self.table.weight.device)

    def start(self, labels: Tensor, guided: bool) -> Tensor:
        """Embeddings to generate from: (B, D), or with guidance (2 B, D) with the null class behind.

        Raises:
            ValueError: If a label is not in [0, num_classes].
        """
        self.check(labels)
        out: Tensor = self(torch.cat([labels, self.null(len(labels))]) if guided else labels)
        return out

    def or_null(self, labels: Tensor) -> Tensor:
        """Labels, the missing ones (-1) as the null class; all of them where there are no classes."""
        return torch.where(labels < 0, self.num_classes, labels) if self.num_classes else torch.zeros_like(labels)

    def check(self, labels: Tensor) -> None:
        """Raises ValueError unless labels are in [0, num_classes]."""
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > self.num_classes):
            allowed = f"0 to {self.num_classes - 1}" if self.num_classes else "none (the model is unconditional)"
            raise ValueError(f"class labels {sorted(set(labels.tolist()))} must be among {allowed}.")


class LowResPrefix(nn.Module):
    """Patches of a low-resolution image as elements in front of those that an order feeds."""

    positions: Tensor

    def __init__(self, side: int, patch_size: int, width: int) -> None:
        """Takes the side of the image and of its patches in pixels, and the channels D, a multiple of 4."""
        super().__init__()
        self.side, grid = side, side // patch_size
        self.num_elements = grid * grid
        self.embed = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.null = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=(1 / width / 3) ** 0.5))
        self.register_buffer("positions", sincos_2d(grid, grid, width), persistent=False)

    def forward(self, images: Tensor, dropped: Tensor) -> Tensor:
        """Elements of images.

        Args:
            images: (B, 3, side, side) in [-1, 1], of any float type.
            dropped: Rows that get the null elements instead, (B,) bool.

        Returns:
            (B, M, D), row-major, in the precision of the weights.
        """
        elements = self.embed(images.to(self.embed.weight.dtype)).flatten(2).mT
        return torch.where(dropped[:, None, None], self.null.to(elements), elements) + self.positions.to(elements)

    def start(self, images: Tensor, guided: bool) -> Tensor:
        """Elements to generate from: (B, M, D), or with guidance (2 B, M, D) with the null elements behind."""
        rows = torch.arange(2 * len(images) if guided else len(images), device=images.device)
        out: Tensor = self(images.repeat(2, 1, 1, 1) if guided else images, rows >= len(images))
        return out

    def check(self, images: Tensor, count: int) -> None:
        """Raises ValueError unless images are (count, 3, side, side)."""
        if tuple(images.shape) != (count, 3, self.side, self.side):
            raise ValueError(
                f"low_res must be ({count}, 3, {self.side}, {self.side}) for {count} images, not "
                f"{tuple(images.shape)}; resize them."
            )


def with_prefix(prefix: Tensor | None, x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Elements (B, S, D) and their step ids, (S,) or (B, S), with a prefix (B, M, D) in front."""
    if prefix is None:
        return x, steps
    return torch.cat([prefix, x], dim=1), F.pad(steps, (prefix.shape[1], 0), value=PREFIX_STEP)
