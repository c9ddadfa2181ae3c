"""What training a generator costs: its parameters, and the floating-point operations of an image.

The text-book estimate of 6 N D (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1) counts two
operations a parameter and token in the forward pass and four in the backward pass. It overlooks attention, which is a
good part of tiny models, and is wrong where a weight does not meet every token once: AdaLN maps meet an image once,
MAR's encoder sees the known tokens only, a diffusion head sees a token several times. So a forward pass is counted.
"""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from genaim.core.noise import NoiseSource
from genaim.core.transformer import Transformer
from genaim.data import Batch
from genaim.models import GenerativeModel
from genaim.training.tasks import GeneratorLoss

COUNTED_IMAGES = 8  # what a model draws, such as how many tokens MAR hides, is averaged over so many


class Parameters(NamedTuple):
    """Numbers of trained parameters; the frozen tokenizer has none."""

    total: int
    """All."""
    transformer: int
    """Blocks, norms and modulation of the transformers: all but embeddings, positions and head."""


def count_parameters(model: GenerativeModel) -> Parameters:
    """The trained parameters of a generator."""
    total = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("tokenizer."))
    trunks = [
        m for name, m in model.named_modules() if isinstance(m, Transformer) and not name.startswith("tokenizer.")
    ]
    return Parameters(total, sum(p.numel() for trunk in trunks for p in trunk.parameters()))


@torch.no_grad()
def training_flops(model: GenerativeModel) -> float:
    """Floating-point operations of training on one image, forward and backward.

    Three times the matrix products, convolutions and attention of a forward pass in training mode: the backward pass
    has two products for each of them. A multiplication and an addition are two operations; attention is counted
    without regard to its mask. What the frozen tokenizer computes, the optimiser and recomputation are left out.

    Args:
        model: On any device; its attention backend must be one that PyTorch's counter knows, sdpa.
    """
    training, device, tokenizer = model.training, model.device, model.tokenizer
    rows = torch.arange(COUNTED_IMAGES, device=device)
    side = tokenizer.image_size
    tokens = tokenizer.encode_for_cache(torch.zeros(COUNTED_IMAGES, 3, side, side, device=device))
    small = model.config.low_res
    low_res = None if small is None else torch.zeros(COUNTED_IMAGES, 3, small, small, device=device)
    batch = Batch(None, torch.zeros_like(rows) - 1, rows, rows, tokens=tokens, low_res=low_res)
    module = GeneratorLoss(model).train()
    with FlopCounterMode(display=False) as counter:
        module(batch, NoiseSource(0, rows), 0)
    model.train(training)
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    frozen = [name for name in counts if name.startswith("GeneratorLoss.model.tokenizer.")]
    outermost = [name for name in frozen if not any(name.startswith(f"{other}.") for other in frozen)]
    trained: int = counter.get_total_flops() - sum(counts[name] for name in outermost)
    return 3 * trained / COUNTED_IMAGES
