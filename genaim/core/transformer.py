"""One pre-norm transformer that is exactly the published VAR, MAR, AIM v1/v2 and SemAIM encoder blocks.

The families differ in norm, bias, MLP, q/k normalisation, conditioning and mask; each difference is a field of
`TransformerConfig` (core takes a switch when two models use it):

    VAR    layernorm_no_affine 1e-6, gelu_tanh, qkv_bias "qv", qk_norm "l2", conditioning "adaln" or "shared_adaln"
    MAR    layernorm 1e-6, gelu, qkv_bias "all"
    AIM    layernorm 1e-6, gelu, no bias              AIMv2  rmsnorm 1e-5, swiglu, no bias
    SemAIM layernorm 1e-6, gelu, qkv_bias "all"
"""

import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genaim.config import Config
from genaim.core.attention import attention, attention_dtype, check_backend, prepare_mask
from genaim.core.cache import KVCache, LayerCache
from genaim.core.inference import InferenceLinear
from genaim.core.layers import MLP, Activation, Norm, drop_path, make_norm, modulate
from genaim.core.masks import StepMask
from genaim.core.noise import Noise

MAX_LOG_SCALE = math.log(100)  # cap of the learned l2-attention scale in VAR's checkpoints


class TransformerConfig(Config):
    """What a transformer is made of; see the table at the top of this file for the published choices."""

    width: int = Field(ge=1)
    """Channels D of every element."""
    depth: int = Field(ge=1)
    """Number of blocks."""
    num_heads: int = Field(ge=1)
    """Attention heads; they divide the width."""
    mlp_ratio: float = Field(4.0, gt=0, allow_inf_nan=False)
    """Hidden width of the MLP over the width."""
    norm: Norm = "layernorm"
    """layernorm, layernorm_no_affine or rmsnorm."""
    norm_eps: float = 1e-6
    """Epsilon of every norm."""
    activation: Activation = "gelu"
    """gelu, gelu_tanh, or swiglu with its third matrix."""
    qkv_bias: Literal["all", "none", "qv"] = "all"
    """Which of query, key and value have a bias."""
    bias: bool = True
    """Bias of the attention output and of the MLP."""
    qk_norm: Literal["none", "l2"] = "none"
    """l2: unit-length q and k, with a learned scale per head (VAR)."""
    conditioning: Literal["none", "adaln", "shared_adaln"] = "none"
    """adaln: every block maps the condition to its modulation; shared_adaln: one map, with offsets per block."""
    condition_width: int | None = None
    """Channels of the condition; None means `width`."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping the last block's branches; earlier blocks grow to it linearly."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout after the attention output and the MLP."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of attention weights; flex has none."""
    attention_backend: str = "sdpa"
    """sdpa runs everywhere; flex and xformers are for CUDA."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass to save memory."""

    @model_validator(mode="after")
    def _check(self) -> "TransformerConfig":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide width {self.width}")
        check_backend(self.attention_backend, self.attention_dropout)
        return self

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads


class Attention(nn.Module):
    """Multi-head self-attention with a fused projection, optional l2 normalisation and an optional cache."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.qkv: nn.Linear | InferenceLinear = nn.Linear(width, 3 * width, bias=config.qkv_bias == "all")
        if config.qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        if config.qk_norm == "l2":
            self.log_scale = nn.Parameter(torch.full((config.num_heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width, bias=config.bias)

    def forward(self, x: Tensor, mask: Any, cache: LayerCache | None) -> Tensor:
        """(B, n, D) to (B, n, D); with a cache, the new keys and values are appended first."""
        c = self.config
        qkv = self._project(x).unflatten(-1, (3, c.num_heads, c.head_dim)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, H, n, head_dim) each
        scale = c.head_dim**-0.5
        if c.qk_norm == "l2":
            q = (F.normalize(q, dim=-1) * self.log_scale.clamp_max(MAX_LOG_SCALE).exp()).to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
            scale = 1.0
        if cache is not None:
            k, v = cache.append(k, v)
        dropout = c.attention_dropout if self.training else 0.0
        out = attention(q, k, v, mask=mask, scale=scale, backend=c.attention_backend, dropout=dropout)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return F.dropout(out, c.dropout, self.training)

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values, (B, n, 3 D)."""
        if self.config.qkv_bias == "qv" and not isinstance(self.qkv, InferenceLinear):
            return F.linear(x, self.qkv.weight, self.qkv_bias())
        out: Tensor = self.qkv(x)
        return out

    def qkv_bias(self) -> Tensor | None:
        """The bias of the fused projection, (3 D,)."""
        if self.config.qkv_bias == "qv":
            return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.qkv.bias


class BlockModulation(NamedTuple):
    """What AdaLN makes of the condition in one block, each (B, 1, D); the order is that of VAR's checkpoints."""

    gamma1: Tensor
    gamma2: Tensor
    scale1: Tensor
    scale2: Tensor
    shift1: Tensor
    shift2: Tensor


class Modulation(NamedTuple):
    """What AdaLN makes of a condition in the whole transformer."""

    blocks: list[BlockModulation]
    """Of every block."""
    norm: tuple[Tensor, Tensor]
    """Scale and shift of the final norm, (B, 1, D) each."""


class Block(nn.Module):
    """``x += gamma1 * attention(norm1(x)); x += gamma2 * mlp(norm2(x))``, modulated when there is a condition."""

    def __init__(self, config: TransformerConfig, drop_path_rate: float) -> None:
        super().__init__()
        width = config.width
        self.drop_path_rate = drop_path_rate
        self.norm1 = make_norm(config.norm, width, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = make_norm(config.norm, width, config.norm_eps)
        self.mlp = MLP(width, round(width * config.mlp_ratio), config.activation, config.bias, config.dropout)
        if config.conditioning == "adaln":
            self.modulation = nn.Linear(config.condition_width or width, 6 * width)
        elif config.conditioning == "shared_adaln":
            self.modulation_offset = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        x: Tensor,
        mask: Any = None,
        condition: Tensor | BlockModulation | None = None,
        cache: LayerCache | None = None,
        drop: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x: (B, n, D).
            mask: The result of `prepare_mask`.
            condition: What `modulation_of` takes, or its result.
            cache: Where keys and values are appended.
            drop: Uniform numbers for drop path, (B, 2), or None to drop nothing.

        Returns:
            (B, n, D).
        """
        attention_in = self.norm1(x)
        gamma1 = gamma2 = scale2 = shift2 = None
        if condition is not None:
            found = condition if isinstance(condition, BlockModulation) else self.modulation_of(condition)
            gamma1, gamma2, scale1, scale2, shift1, shift2 = found
            attention_in = modulate(attention_in, scale1, shift1)
        x = x + self._branch(self.attn(attention_in, mask, cache), gamma1, drop, 0)
        mlp_in = self.norm2(x)
        if scale2 is not None and shift2 is not None:
            mlp_in = modulate(mlp_in, scale2, shift2)
        return x + self._branch(self.mlp(mlp_in), gamma2, drop, 1)

    def modulation_of(self, condition: Tensor) -> BlockModulation:
        """Of the SiLU of a condition, (B, D), or with shared AdaLN of the shared map of that, (B, 6, D)."""
        if condition.dim() == 3:
            table = condition + self.modulation_offset
        else:
            table = self.modulation(condition).unflatten(-1, (6, -1))
        return BlockModulation(*table.unsqueeze(2).unbind(1))

    def _branch(self, out: Tensor, gamma: Tensor | None, drop: Tensor | None, index: int) -> Tensor:
        out = out if gamma is None else out * gamma
        if drop is None or self.drop_path_rate == 0:
            return out
        return drop_path(out, self.drop_path_rate, drop[:, index])


class Transformer(nn.Module):
    """A stack of blocks and the final norm, which is adaptive when the blocks are."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, condition_width = config.width, config.condition_width or config.width
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = make_norm(config.norm, width, config.norm_eps)
        if config.conditioning == "shared_adaln":
            self.shared_modulation = nn.Linear(condition_width, 6 * width)
        if config.conditioning != "none":
            self.norm_modulation = nn.Linear(condition_width, 2 * width)

    def forward(
        self,
        x: Tensor,
        *,
        mask: StepMask | None = None,
        condition: Tensor | Modulation | None = None,
        cache: KVCache | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """Runs all blocks and the final norm; arguments and errors are those of `hidden_states`.

        Returns:
            Features after the final norm, (B, n, D).
        """
        for hidden in self.hidden_states(x, mask=mask, condition=condition, cache=cache, noise=noise):
            x = hidden
        return self.final_norm(x, condition)

    def hidden_states(
        self,
        x: Tensor,
        *,
        mask: StepMask | None = None,
        condition: Tensor | Modulation | None = None,
        cache: KVCache | None = None,
        noise: Noise | None = None,
    ) -> Iterator[Tensor]:
        """Yields the output of every block in turn, before any norm; who stops early computes no more.

        Args:
            x: Elements, (B, n, D).
            mask: Step ids of queries and keys, or None to attend everywhere (and for cached decoding step by step).
            condition: (B, condition_width), required when the config has conditioning; or its `modulation`, computed
                once for all steps of a generation.
            cache: Appended to, once per block, and advanced after the last; `mask` then covers the cached keys too.
            noise: Source of drop-path decisions in training; None drops nothing.

        Yields:
            (B, n, D).

        Raises:
            ValueError: If a condition is missing or not wanted.
        """
        c = self.config
        if (condition is None) != (c.conditioning == "none"):
            raise ValueError(
                f"conditioning is '{c.conditioning}', but condition is {'missing' * (condition is None) or 'given'}."
            )
        native = prepare_mask(mask, c.attention_backend, x.dtype)
        conditions: list[Any] = (
            condition.blocks if isinstance(condition, Modulation) else [self._block_condition(condition)] * c.depth
        )
        drops: list[Tensor | None] = [None] * c.depth
        if self.training and c.drop_path > 0 and noise is not None:
            drops = list(noise.uniform(c.depth, 2).unbind(1))
        for layer, (block, drop) in enumerate(zip(self.blocks, drops, strict=True)):
            arguments = (x, native, conditions[layer], None if cache is None else cache.layer(layer), drop)
            if c.gradient_checkpointing and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
            if cache is not None and layer == c.depth - 1:
                cache.advance(x.shape[1])
            yield x

    def final_norm(self, x: Tensor, condition: Tensor | Modulation | None = None) -> Tensor:
        """The norm behind the last block, (B, n, D), modulated by the condition when the blocks are."""
        x = self.norm(x)
        if condition is None:
            return x
        scale, shift = condition.norm if isinstance(condition, Modulation) else self._norm_modulation(condition)
        return modulate(x, scale, shift)

    def modulation(self, condition: Tensor) -> Modulation:
        """What AdaLN makes of a condition (B, condition_width) everywhere, for the steps of a generation.

        In VAR-d30 these maps are a third of all weights, and the condition is the same at every scale.
        """
        shared = self._block_condition(condition)
        assert shared is not None
        blocks = [cast(Block, block).modulation_of(shared) for block in self.blocks]
        return Modulation(blocks, self._norm_modulation(condition))

    def _block_condition(self, condition: Tensor | None) -> Tensor | None:
        """What every block takes: SiLU of the condition, (B, D), or with shared AdaLN the shared map of it."""
        if condition is None:
            return None
        activated = F.silu(condition)
        if self.config.conditioning == "shared_adaln":
            activated = self.shared_modulation(activated).unflatten(-1, (6, -1))
        return activated

    def _norm_modulation(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.norm_modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        return scale, shift

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal with variance 1 / (3 D), residual outputs divided by sqrt(2 depth).

        AdaLN starts at half the scale and its gates at 1e-5, so that every block starts as the identity. This follows
        VAR's training code (Tian et al. 2024, https://arxiv.org/abs/2404.02905), which with shared AdaLN halves the
        offsets of the blocks instead of the shared map.
        """
        c = self.config
        std = (1 / c.width / 3) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2 and "norm." not in name and "offset" not in name:
                nn.init.trunc_normal_(parameter, std=std)
                if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                    parameter.div_((2 * c.depth) ** 0.5)
                if "modulation" in name:
                    parameter.mul_(0.5)
        for name, parameter in self.named_parameters():  # the first two of six rows are the gates
            if name.endswith("modulation_offset"):
                parameter[:2].mul_(1e-5)
            elif re.search(r"(blocks\.\d+\.|shared_)modulation\.weight", name):
                parameter[: 2 * c.width].mul_(1e-5 / 0.5)

    def make_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache for this transformer, on its device and in the number format that attention computes in."""
        weight = cast(Block, self.blocks[0]).attn.qkv.weight
        device, kind = weight.device, weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        c, dtype = self.config, attention_dtype(device, dtype)
        return KVCache(c.depth, batch_size, c.num_heads, max_length, c.head_dim, device=device, dtype=dtype)
