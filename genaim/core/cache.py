"""Preallocated key-value cache, created by the caller and passed to the transformer."""

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache:
    """Keys and values of all layers for up to ``max_length`` sequence elements.

    The transformer appends; `length` elements are valid. Rows are independent.
    """

    def __init__(
        self,
        depth: int,
        batch_size: int,
        num_heads: int,
        max_length: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocates (depth, B, H, max_length, head_dim) twice."""
        shape = (depth, batch_size, num_heads, max_length, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def layer(self, index: int) -> "LayerCache":
        """The part of one layer, which appends to it; `length` moves on by `advance`, once all layers have appended."""
        return LayerCache(self.keys[index], self.values[index], self.length)

    def advance(self, count: int) -> None:
        """Makes the last ``count`` appended elements valid for the next call."""
        self.length += count


class LayerCache(NamedTuple):
    """Keys and values of one layer; without the layer's number, so that compiled blocks share their code."""

    keys: Tensor
    """(B, H, max_length, head_dim)."""
    values: Tensor
    """(B, H, max_length, head_dim)."""
    length: int
    """Number of valid elements."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new keys and values, (B, H, n, head_dim), and returns all valid ones.

        Raises:
            ValueError: If the new elements do not fit.
        """
        end = self.length + k.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"the KV cache holds {self.keys.shape[2]} elements; {end} were appended.")
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        return self.keys[:, :, :end], self.values[:, :, :end]
