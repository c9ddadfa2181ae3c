"""The residual network between features and the parameters of a distribution, as in AIM's prediction heads."""

import torch
from torch import Tensor, nn

from genaim.core.layers import MLP, in_float32


class ResidualMLP(nn.Module):
    """``depth`` blocks ``x + mlp(norm(x))`` on every token by itself, and a linear layer to the output.

    AIM's heads have 12 blocks of width 2048 without bias (El-Nouby et al. 2024, https://arxiv.org/abs/2401.08541, table
    3). Without blocks it is the linear layer alone.
    """

    def __init__(self, in_width: int, width: int, depth: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.enter = nn.Linear(in_width, width, bias=bias) if depth else nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(depth))
        self.mlps = nn.ModuleList(MLP(width, 4 * width, "gelu", bias, dropout=0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6) if depth else nn.Identity()
        self.out = nn.Linear(width if depth else in_width, out_width, bias=bias)
        self.init_weights()

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_width) to (..., out_width); the last layer is computed in float32 or better, for densities of it."""
        x = self.enter(features)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return in_float32(self.out, self.norm(x))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal of variance 1 / (3 fan-in), residual outputs divided by sqrt(depth); biases as PyTorch's."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.trunc_normal_(parameter, std=(1 / parameter.shape[1] / 3) ** 0.5)
                if name.endswith("fc2.weight"):
                    parameter.div_(len(self.mlps) ** 0.5)
