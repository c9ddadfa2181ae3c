"""Where an element stands: learned tables, sine-cosine tables and scale embeddings."""

import torch
from torch import Tensor, nn


def sincos_2d(height: int, width: int, channels: int, base: float = 10000.0) -> Tensor:
    """Sine-cosine positions of a grid, as in AIM and MAE.

    The first half of the channels codes the column, the second half the row; each half holds sines, then cosines.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        channels: Channels D, a multiple of 4.
        base: Longest wavelength over 2 pi.

    Returns:
        (height * width, channels) float32, row-major, on the CPU whatever the default device.

    Raises:
        ValueError: If channels is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"2-D sine-cosine positions need a multiple of 4 channels, not {channels}.")
    frequency = base ** (-torch.arange(channels // 4, dtype=torch.float64, device="cpu") / (channels // 4))
    axes = (torch.arange(side, dtype=torch.float64, device="cpu") for side in (height, width))
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    halves = [axis.flatten()[:, None] * frequency for axis in (columns, rows)]  # (h * w, D / 4) each
    return torch.cat([part for half in halves for part in (half.sin(), half.cos())], dim=1).float()


class ScalePositions(nn.Module):
    """A learned embedding of every position plus one of its scale (VAR, ``pos_1LC`` and ``lvl_embed``)."""

    scale_of: Tensor

    def __init__(self, step_ids: Tensor, width: int) -> None:
        """Takes the scale of every position, (N,) int64, and the channels D."""
        super().__init__()
        std = (1 / width / 3) ** 0.5
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(len(step_ids), width), std=std))
        self.scales = nn.Embedding(int(step_ids.max()) + 1, width)
        nn.init.trunc_normal_(self.scales.weight, std=std)
        self.register_buffer("scale_of", step_ids, persistent=False)

    def forward(self, start: int, end: int) -> Tensor:
        """Embeddings of positions ``start`` to ``end``, (end - start, D)."""
        out: Tensor = self.positions[start:end] + self.scales(self.scale_of[start:end])
        return out
