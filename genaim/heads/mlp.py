"""The residual network between features and the parameters of a distribution, as in AIM's prediction heads."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """``depth`` blocks ``x + fc2(gelu(fc1(norm(x))))`` of a given width, and a linear layer to the output.

    AIM's heads have 12 blocks of width 2048 (El-Nouby et al. 2024, https://arxiv.org/abs/2401.08541, table 3). Without
    blocks it is the linear layer alone.
    """

    def __init__(self, in_width: int, width: int, depth: int, out_width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(in_width, width) if depth else nn.Identity()
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6) if depth else nn.Identity()
        self.out = nn.Linear(width if depth else in_width, out_width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_width) to (..., out_width), in float32 or better, since densities are computed of it."""
        x = self.enter(features)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.out(self.norm(x))
        return out if out.dtype.itemsize == 8 else out.float()


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out
