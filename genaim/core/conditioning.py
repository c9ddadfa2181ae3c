"""What an image is conditioned on: its class, which guidance replaces by the null class."""

import torch
from torch import Tensor, nn

from genaim.core.noise import Noise


class ClassEmbedding(nn.Module):
    """A table of classes; its last row is the null class of unconditional prediction.

    Without classes the table holds the null class alone, and every label is the null class.
    """

    def __init__(self, num_classes: int, width: int, dropout: float) -> None:
        """Takes the number of classes, the channels, and the probability that training sees the null class."""
        super().__init__()
        self.num_classes, self.dropout = num_classes, dropout
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

    def drop(self, labels: Tensor, noise: Noise) -> Tensor:
        """Labels for training: missing ones (-1) become null, and others with probability ``dropout``."""
        dropped = noise.uniform() < self.dropout
        return torch.where(dropped, self.num_classes, self.or_null(labels))

    def or_null(self, labels: Tensor) -> Tensor:
        """Labels, the missing ones (-1) as the null class; all of them where there are no classes."""
        return torch.where(labels < 0, self.num_classes, labels) if self.num_classes else torch.zeros_like(labels)

    def check(self, labels: Tensor) -> None:
        """Raises ValueError unless labels are in [0, num_classes]."""
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > self.num_classes):
            allowed = f"0 to {self.num_classes - 1}" if self.num_classes else "none (the model is unconditional)"
            raise ValueError(f"class labels {sorted(set(labels.tolist()))} must be among {allowed}.")
