"""Normalisation, feed-forward and residual-dropping layers of the transformer block, and the rounding around it."""

import copy
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from genaim.core.inference import InferenceLinear

Norm = Literal["layernorm", "layernorm_no_affine", "rmsnorm"]
Activation = Literal["gelu", "gelu_tanh", "swiglu"]
ModuleType = TypeVar("ModuleType", bound=nn.Module)


def make_norm(kind: Norm, width: int, eps: float) -> nn.Module:
    """A norm over the last axis: LayerNorm with or without weight and bias, or RMSNorm."""
    if kind == "rmsnorm":
        return nn.RMSNorm(width, eps=eps)
    return nn.LayerNorm(width, eps=eps, elementwise_affine=kind == "layernorm")


class MLP(nn.Module):
    """The feed-forward layer: ``fc2(act(fc1(x)))``, or ``fc2(silu(fc1(x)) * fc3(x))`` for SwiGLU."""

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool, dropout: float) -> None:
        super().__init__()
        self.activation, self.dropout = activation, dropout
        self.fc1: nn.Linear | InferenceLinear = nn.Linear(width, hidden, bias=bias)
        self.fc3 = nn.Linear(width, hidden, bias=bias) if activation == "swiglu" else None
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, D) to (B, n, D)."""
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        if self.fc3 is not None:
            hidden = F.silu(self.fc1(x)) * self.fc3(x)
        elif isinstance(self.fc1, InferenceLinear):
            hidden = self.fc1.gelu(x, approximate)
        else:
            hidden = F.gelu(self.fc1(x), approximate=approximate)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that: for densities, logits and quantisation under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def in_float32(module: nn.Module, *inputs: Tensor) -> Tensor:
    """The output of a module computed in float32, or in float64 if it has that, whatever autocast and its weights say.

    For the layers that end in logits, densities or denoised tokens: features bear the 8 bits of bfloat16 better than
    the numbers that are exponentiated. `mnist-aim` has 1.2118 bits per dimension on 256 test digits in float32, 1.2127
    under autocast with its last layer in bfloat16, and 1.2121 with that in float32.
    """
    with torch.autocast(inputs[0].device.type, enabled=False):
        inputs = tuple(at_least_float32(x) if x.is_floating_point() else x for x in inputs)
        weights = {}
        if _in_half(module):
            weights = {name: at_least_float32(weight) for name, weight in module.named_parameters()}
        out: Tensor = functional_call(module, weights, inputs) if weights else module(*inputs)
        return out


def float32_module(module: ModuleType) -> ModuleType:
    """The module, or of one with weights in half precision a copy in float32: `in_float32` for many calls."""
    return copy.deepcopy(module).float() if _in_half(module) else module


def _in_half(module: nn.Module) -> bool:
    return any(weight.dtype.itemsize < 4 for weight in module.parameters())


def to_levels(x: Tensor, levels: int) -> Tensor:
    """The nearest of ``levels`` values that divide [-1, 1] evenly."""
    half = (levels - 1) / 2
    return ((x + 1) * half).round().clamp(0, levels - 1) / half - 1


def drop_path(residual: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382): drops a residual branch per image.

    Args:
        residual: Output of the branch, (B, n, D).
        rate: Probability of dropping it.
        uniform: One uniform number per image, (B,); the branch is kept where it is at least ``rate``.

    Returns:
        The branch, scaled by 1 / (1 - rate) where kept, so that its mean does not change.
    """
    keep = (uniform >= rate).to(residual.dtype) / (1 - rate)
    return residual * keep[:, None, None]


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Adaptive layer norm's affine part: ``x * (1 + scale) + shift``."""
    return torch.addcmul(shift, x, scale + 1)
