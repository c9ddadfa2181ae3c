"""The plain way that fast sampling is compared with: the operations of the published code, over the same weights.

float32 throughout; keys and values concatenated at every step; AdaLN maps computed anew at every scale (VAR); features
projected, and modulated, anew at every diffusion step (MAR); layers and layouts as PyTorch has them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

from genaim.core.cache import KVCache
from genaim.core.transformer import Transformer
from genaim.heads import DiffusionHead, SamplingOptions
from genaim.heads.base import guide
from genaim.heads.diffusion import Predict
from genaim.models import GenerativeModel
from genaim.models.base import Predicted, State


class GrowingCache(KVCache):
    """A cache that is concatenated with what is new."""

    def __init__(self, depth: int) -> None:
        self.layers = [GrowingLayer() for _ in range(depth)]
        self.length = 0

    def layer(self, index: int) -> Any:
        """The part of one layer."""
        return self.layers[index]


class GrowingLayer:
    """Keys and values of one layer."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, (B, H, S, head_dim) each."""
        if self.kept is not None:
            k, v = torch.cat([self.kept[0], k], dim=2), torch.cat([self.kept[1], v], dim=2)
        self.kept = k, v
        return k, v


@contextmanager
def plain(model: GenerativeModel, every: int = 1) -> Iterator[None]:
    """Makes a model that is not prepared sample in the plain way.

    Args:
        model: The model; afterwards it is as it was.
        every: Only every so-manyth step is computed, to extrapolate from; the others commit zeros.
    """
    planted: list[tuple[torch.nn.Module, str]] = []

    def plant(module: torch.nn.Module, name: str, method: Any) -> None:
        setattr(module, name, method)
        planted.append((module, name))

    for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
        depth = transformer.config.depth
        plant(transformer, "make_cache", lambda batch_size, max_length, depth=depth: GrowingCache(depth))
        plant(transformer, "modulation", lambda condition: condition)
    if isinstance(model.head, DiffusionHead):
        plant(model.head, "predictor", lambda *given: plain_predictor(model.head, *given))
    if every > 1:
        _skip_steps(model, every, plant)
    try:
        yield
    finally:
        for module, name in planted:
            delattr(module, name)


def plain_predictor(
    head: Any, features: Tensor, uncond_features: Tensor | None, guidance_scale: Tensor | float, times: Tensor, *_: Any
) -> Predict:
    """`DiffusionHead.predictor`, with all of the network at every step."""
    parts = torch.stack([features] if uncond_features is None else [features, uncond_features]).float()
    channels = head.config.channels

    def predict(x: Tensor, number: int) -> Tensor:
        out = head.net(x.expand(len(parts), *x.shape), times[number], head.net.condition_embed(parts))
        moved, rest = out[..., :channels], out[0, ..., channels:]
        guided = guide(moved[0], moved[1] if len(parts) == 2 else None, guidance_scale)
        return torch.cat([guided, rest], dim=-1)

    return predict


def _skip_steps(model: GenerativeModel, every: int, plant: Callable[[torch.nn.Module, str, Any], None]) -> None:
    predict, sample, steps = model.predict, model.head.sample, count()
    skipped = False

    def predict_some(state: State, positions: Tensor) -> Predicted:
        nonlocal skipped
        skipped = next(steps) % every != every // 2
        nothing = torch.zeros(*positions.shape, model.head.config.width, device=positions.device)
        return Predicted(nothing, nothing) if skipped else predict(state, positions)

    def sample_some(features: Tensor, options: SamplingOptions, **given: Any) -> Tensor:
        nothing = features.new_zeros(*features.shape[:2], model.head.config.channels)
        return nothing if skipped else sample(features, options, **given)

    plant(model, "predict", predict_some)
    plant(model.head, "sample", sample_some)
