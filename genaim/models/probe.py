"""The attentive probe that reads classes off frozen features (AIM, El-Nouby et al. 2024, arXiv 2401.08541, section 4).

Follows github.com/apple/ml-aim, aim-v1; the official heads load through `genaim.pretrained.aim`. As published, training
normalises by the statistics of the batch, so that its rows see each other; evaluation does not.
"""

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.config import Config


class AttentiveProbeConfig(Config):
    """A linear classifier behind one attention with a learned query."""

    width: int = Field(ge=1)
    """Channels D of the features."""
    num_heads: int = Field(ge=1)
    """Attention heads; they divide the width. The official probes have as many as their encoder."""
    num_classes: int = Field(ge=1)
    """Classes."""
    bias: bool = False
    """Bias of the classifier; the official ones of AIM v1 have none."""

    @model_validator(mode="after")
    def _check(self) -> "AttentiveProbeConfig":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide width {self.width}")
        return self


class AttentiveProbe(nn.Module):
    """Batch norm without affine, attention of one learned query over all patches, a linear layer."""

    def __init__(self, config: AttentiveProbeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False)
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, config.num_classes, bias=config.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features of patches, (B, N, D), to logits, (B, num_classes)."""
        heads = (self.config.num_heads, -1)
        x = self.norm(features.mT).mT
        q = self.query.expand(len(x), 1, -1)
        q, k, v = (y.unflatten(-1, heads).transpose(1, 2) for y in (q, self.k(x), self.v(x)))  # (B, H, n, head_dim)
        pooled = F.scaled_dot_product_attention(q, k, v)  # (B, H, 1, head_dim)
        logits: Tensor = self.linear(pooled.flatten(1))
        return logits
