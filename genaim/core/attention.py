"""Scaled dot-product attention behind one function, with the backend as an argument.

`sdpa` (PyTorch's own) runs everywhere and is the default; `flex` compiles block masks and is for training on CUDA, its
uncompiled forward runs on CPU for tests; `xformers` is for CUDA. All three are fed from the step ids of `masks`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.masks import StepMask, step_mask


def _sdpa_mask(mask: StepMask, dtype: torch.dtype) -> Tensor:
    return step_mask(*mask)


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The number format that `sdpa` computes in, given that of queries; keys and values are best kept in it.

    On CPUs float32: the kernel's backward pass was measured 2 to 10 times slower in bfloat16 (AVX512-BF16, PyTorch
    2.15), and its forward pass no faster. Matrix products in bfloat16 with a softmax between them would be 1.7 times as
    fast, but round scores, which VAR scales up to 100, to 8 bits.
    """
    return torch.float32 if device.type == "cpu" and dtype == torch.bfloat16 else dtype


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    dtype = attention_dtype(q.device, q.dtype)
    if dtype != q.dtype:
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(
                q.to(dtype), k.to(dtype), v.to(dtype), mask, dropout_p=dropout, scale=scale
            )
        return out.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale)


def _flex_mask(mask: StepMask, dtype: torch.dtype) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    query, key = (steps if steps.dim() == 2 else steps[None] for steps in mask)
    rows = max(query.shape[0], key.shape[0])
    query, key = query.expand(rows, -1), key.expand(rows, -1)

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return key[b, k] <= query[b, q]

    batch = rows if rows > 1 else None
    return create_block_mask(allowed, batch, None, query.shape[1], key.shape[1], device=str(query.device))


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # By default PyTorch compiles for the first length that it meets and, when the length changes, for lengths of any
    # number (3 graphs for 9 lengths from 10 to 300). MAR's encoder has another length in every batch: compiled for each
    # (dynamic=False), it would exceed the limit of recompilations at the ninth. The speed on a GPU is not measured.
    return torch.compile(flex_attention)


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, dropout: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        raise ValueError("attention backend 'flex' trains on CUDA only; use the backend 'sdpa' on this device.")
    flex: Any = _compiled_flex() if q.is_cuda else flex_attention
    out: Tensor = flex(q, k, v, block_mask=mask, scale=scale)
    return out


def _xformers_mask(mask: StepMask, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device=mask.query_steps.device).masked_fill(~step_mask(*mask), float("-inf"))


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    if not q.is_cuda:
        raise ValueError(f"attention backend 'xformers' runs on CUDA only, not on {q.device}; use the backend 'sdpa'.")
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        raise ValueError(
            "attention backend 'xformers' is not installed; run pip install 'genaim[xformers]' or use 'sdpa'."
        ) from None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, S, H, head_dim)
    if mask is not None:
        mask = aligned(mask.to(q.dtype)).expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    out: Tensor = memory_efficient_attention(q, k, v, attn_bias=mask, p=dropout, scale=scale)
    return out.transpose(1, 2)


def aligned(bias: Tensor) -> Tensor:
    """A bias (..., Q, S) whose rows begin at multiples of 8 elements, as the kernels of xformers ask for."""
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % 8))[..., :length]


Backend = tuple[Callable[[StepMask, torch.dtype], Any], Callable[..., Tensor]]

BACKENDS: dict[str, Backend] = {
    "sdpa": (_sdpa_mask, _sdpa),
    "flex": (_flex_mask, _flex),
    "xformers": (_xformers_mask, _xformers),
}


def check_backend(backend: str, dropout: float = 0.0) -> None:
    """Raises ValueError unless there is such a backend, and it can drop attention weights where that is wanted."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend '{backend}'; use sdpa (everywhere), or one of {list(BACKENDS)}.")
    if backend == "flex" and dropout:
        raise ValueError(
            f"attention backend 'flex' cannot drop attention weights with probability {dropout:g}; set "
            "attention_dropout=0 or use the backend 'sdpa'."
        )


def prepare_mask(mask: StepMask | None, backend: str, dtype: torch.dtype) -> Any:
    """The backend's own form of a mask, made once per forward pass and shared by all blocks."""
    check_backend(backend)
    return None if mask is None else BACKENDS[backend][0](mask, dtype)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scale: float, backend: str = "sdpa", dropout: float = 0.0
) -> Tensor:
    """Attention of queries over keys.

    Args:
        q: Queries, (B, H, Q, head_dim).
        k: Keys, (B, H, S, head_dim).
        v: Values, (B, H, S, head_dim).
        mask: The result of `prepare_mask`, or None to attend everywhere.
        scale: Factor of the dot products before the softmax.
        backend: Name in `BACKENDS`.
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, H, Q, head_dim).

    Raises:
        ValueError: If the backend is unknown or cannot run here.
    """
    check_backend(backend, dropout)
    return BACKENDS[backend][1](q, k, v, mask, scale, dropout)
