"""What a generator costs: its parameters, and the floating-point operations of training on, or sampling, an image.

The text-book estimate of 6 N D (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1) counts two
operations a parameter and token in the forward pass and four in the backward pass. It overlooks attention, which is a
good part of tiny models, and is wrong where a weight does not meet every token once: AdaLN maps meet an image once,
MAR's encoder sees the known tokens only, a diffusion head sees a token several times. So a forward pass is counted.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genaim.core.noise import NoiseSource
from genaim.core.transformer import Transformer
from genaim.data import Batch
from genaim.heads import DiffusionHead
from genaim.models import MAR, VAR, GenerativeModel
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


def sampling_flops(
    model: GenerativeModel, *, guided: bool = False, num_steps: int | None = None, diffusion_steps: int | None = None
) -> dict[str, float]:
    """Floating-point operations of generating one image as the model defines it, by part.

    Matrix products, convolutions and attention, as `training_flops` counts them; keys and values of earlier steps are
    kept, AdaLN maps are made once. A shortcut that computes the same with less shows as a higher rate.

    Args:
        model: VAR or MAR, not prepared for sampling.
        guided: Whether the null condition is computed too.
        num_steps: Steps of generation, as `samplers.decode` takes them.
        diffusion_steps: Steps for each token of a diffusion head; None takes the head's own. Heun's method for flow
            evaluates the network twice a step, but once in the last.

    Returns:
        Operations of the ``transformer`` with what embeds tokens, of the ``head`` and of the tokenizer's ``decoder``.

    Raises:
        ValueError: If the model is another, or enlarges images.
    """
    if model.low_res_prefix is not None:
        raise ValueError("the operations of sampling are not known for models that enlarge images.")
    rows = 2 if guided else 1
    if isinstance(model, VAR):
        trunk, head = _var_flops(model)
        trunk += _products(model.token_embed) * (model.order.num_tokens - model.order.sizes[0]) / rows  # shared by them
    elif isinstance(model, MAR):
        trunk, head = _mar_flops(model, num_steps, diffusion_steps)
    else:
        raise ValueError(f"the operations of sampling are known for var and mar, not for {type(model).__name__}.")
    return {"transformer": rows * trunk, "head": rows * head, "decoder": _decoder_flops(model)}


def _var_flops(model: VAR) -> tuple[float, float]:
    trunk: float = sum(_products(m) for name, m in model.transformer.named_modules() if name.endswith("modulation"))
    for start, size in zip(model.order.starts, model.order.sizes, strict=True):
        trunk += _block_flops(model.transformer, size, start + size)
    return trunk, model.order.num_tokens * _products(model.head)


def _mar_flops(model: MAR, num_steps: int | None, diffusion_steps: int | None) -> tuple[float, float]:
    tokens, buffer, known = model.order.num_tokens, model.config.num_buffer, 0
    nothing, noise = torch.zeros(1, tokens, dtype=torch.bool), NoiseSource(0, torch.tensor([0]))
    trunk, head = 0.0, tokens * _products(model.head)
    if isinstance(model.head, DiffusionHead):
        steps = diffusion_steps or model.head.config.diffusion_steps
        steps = 2 * steps - 1 if model.head.config.objective == "flow" else steps
        once = _products(model.head.net.condition_embed)
        times = _products(model.head.net.time_embed)  # of a time, not of a token
        head = tokens * (once + steps * (_products(model.head) - once - times))
    for step in model.order.steps(nothing, num_steps, noise):
        seen = buffer + known
        trunk += _products(model.token_embed) * known + _products(model.decoder_embed) * seen
        trunk += _block_flops(model.encoder, seen, seen) + _block_flops(model.decoder, buffer + tokens, buffer + tokens)
        known += step.positions.shape[1]
    return trunk, head


def _block_flops(transformer: Transformer, queries: int, keys: int) -> float:
    """Of all blocks for one image, without the maps of AdaLN."""
    linears = sum(
        _products(m)
        for name, m in transformer.named_modules()
        if isinstance(m, nn.Linear) and not name.endswith("modulation")
    )
    return queries * linears + 4 * queries * keys * transformer.config.width * transformer.config.depth


def _products(module: nn.Module) -> int:
    """Of all linear layers of a module for one row."""
    return sum(2 * m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@torch.no_grad()
def _decoder_flops(model: GenerativeModel) -> float:
    tokenizer = model.tokenizer
    shape = (1, tokenizer.num_tokens, *([] if tokenizer.token_channels is None else [tokenizer.token_channels]))
    tokens = torch.zeros(shape, dtype=torch.int64 if tokenizer.token_channels is None else None, device=model.device)
    with FlopCounterMode(display=False) as counter:
        tokenizer.decode(tokens)
    return float(counter.get_total_flops())
