"""Pictures of a generation in progress."""

import torch
from torch import Tensor

from genaim.core.order import ScaleOrder, Step
from genaim.models import GenerativeModel


@torch.no_grad()
def preview(model: GenerativeModel, step: Step, tokens: Tensor) -> Tensor:
    """What a canvas shows after a step: of scales those that are there; of a grid the tokens so far, the rest empty.

    Args:
        model: The model that generates.
        step: The step that has ended.
        tokens: The canvas, (B, N) int64 or (B, N, C), as `StepCallback` gets it.

    Returns:
        Images, (B, 3, H, W) float32 in [-1, 1].
    """
    if isinstance(model.order, ScaleOrder):
        tokens = tokens[:, : int(step.positions.max()) + 1]
    return model.tokenizer.decode(tokens)
