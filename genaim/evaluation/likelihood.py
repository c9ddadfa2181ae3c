"""Likelihood of images under a generator: nats per token, and bits per dimension where tokens are pixels.

A model with an exact density gives every token a probability (codes, 8-bit pixels) or a density (latents) given those
before it in its order; their logarithms add up to that of the image. What that says:

- of 8-bit pixels: the exact code length of the image. Bits per dimension are nats / (values ln 2), as in PixelCNN++
  (Salimans et al. 2017, https://arxiv.org/abs/1701.05517), and compare with those of any other model of these pixels;
- of codes: the likelihood of the tokens, not of the pixels, of which the tokenizer loses some. It compares models over
  one tokenizer only;
- of latents: a density, which may be negative in nats and depends on the latents' scale; for one tokenizer too.

Every number is a sum over images in float64, so the batch size changes it by the rounding of a forward pass alone.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.core.order import ScaleOrder
from genaim.data import Batch
from genaim.data.transforms import resize_images
from genaim.models import GenerativeModel


@dataclass(frozen=True)
class Likelihood:
    """What a set of images costs under a model; JSON-able by `dataclasses.asdict`."""

    images: int
    """Number of images."""
    told_class: int
    """How many of them had their class told to the model."""
    of: str
    """What is scored, in words."""
    order: str
    """In which order, in words."""
    nats_per_image: float
    """Mean of the negative log-likelihood."""
    nats_per_token: float
    """The same over the tokens of an image."""
    standard_error: float | None
    """Of `nats_per_token`, from the spread between images; None for one image."""
    uniform_nats_per_token: float | None
    """What every token costs when all values are equally likely; None for densities."""
    bits_per_dimension: float | None
    """Of 8-bit pixels; None where tokens are not the pixels themselves."""
    dimensions: int | None
    """Pixels times channels of an image that `bits_per_dimension` counts."""
    nats_per_scale: tuple[float, ...] | None
    """Nats per token of every scale in turn; None where there are no scales."""


@torch.no_grad()
def likelihood(
    model: GenerativeModel,
    batches: Iterable[Batch],
    *,
    classes: bool = True,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> Likelihood:
    """Scores images under a model in evaluation mode, each token given those before it, none known beforehand.

    Args:
        model: A generator with an exact density, on its device.
        batches: Images with labels, in batches of any size; `Batch.index` keys what is drawn for an image.
        classes: Whether the model is told the class of an image, if there is one.
        seed: Seed of random paths and of posterior samples, in models and tokenizers that draw them.
        report: Told after every batch how many images are done.

    Raises:
        ValueError: If the model has no exact density, an image has a class that the model has not, or there are none.
    """
    check_density(model)
    nats: list[Tensor] = []  # (B, K): sums of an image's tokens, by scale
    done = told = 0
    for batch in batches:
        if len(batch):  # else every image of it was unreadable
            labels = batch.labels if classes and model.config.num_classes else torch.full_like(batch.labels, -1)
            nats.append(image_nats(model, replace(batch, labels=labels).to(model.device), seed))
            told += int((labels >= 0).sum())
            done += len(batch)
        if report is not None:
            report(done)
    if not done:
        raise ValueError("there are no images to score; give at least one.")
    return summarised(model, torch.cat(nats), told)


def check_density(model: GenerativeModel, name: str = "the model") -> None:
    """Raises ValueError, by name, unless the model has an exact density."""
    if model.measure is None:
        kind, head = (getattr(part.config, "kind", type(part).__name__) for part in (model, model.head))
        raise ValueError(
            f"{name} ({kind} with a {head} head) has no exact density; models of codes, "
            "of 8-bit pixels, and of latents under a gaussian or mixture head have one, in a fixed order or by scales. "
            "Evaluate its samples instead."
        )


def image_nats(model: GenerativeModel, batch: Batch, seed: int) -> Tensor:
    """Negative log-likelihoods of the images of a batch, (B, K) float64: by scale, K = 1 where there are none."""
    assert batch.images is not None
    noise, tokenizer = NoiseSource(seed, batch.index), model.tokenizer
    tokens = tokenizer.from_cache(tokenizer.encode_for_cache(batch.images), noise)  # as in training
    model.class_embed.check(model.class_embed.or_null(batch.labels))
    low_res = None
    if model.config.low_res is not None:
        low_res = resize_images(batch.images, (model.config.low_res, model.config.low_res)).to(model.device)
    nats = -model.log_prob(tokens, batch.labels, noise=noise, low_res=low_res).double().cpu()
    return torch.stack([part.sum(1) for part in nats.split(_scale_sizes(model), dim=1)], dim=1)


def summarised(model: GenerativeModel, nats: Tensor, told_class: int) -> Likelihood:
    """The figures of images whose tokens cost ``nats`` by scale, (M, K) float64."""
    tokenizer, sizes, each = model.tokenizer, _scale_sizes(model), nats.sum(1)
    count, total = tokenizer.num_tokens, each.mean().item()
    pixels, uniform = None, None
    if model.measure == "probability" and tokenizer.codebook_size is None:
        assert tokenizer.token_channels is not None and tokenizer.pixel_levels is not None
        pixels = count * tokenizer.token_channels
        uniform = tokenizer.token_channels * math.log(tokenizer.pixel_levels)
    elif tokenizer.codebook_size is not None:
        uniform = math.log(tokenizer.codebook_size)
    scales = [(part.mean() / size).item() for part, size in zip(nats.unbind(1), sizes, strict=True)]
    return Likelihood(
        images=len(nats),
        told_class=told_class,
        of=_scored(model),
        order=_order(model),
        nats_per_image=total,
        nats_per_token=total / count,
        standard_error=(each.std() / len(each) ** 0.5 / count).item() if len(each) > 1 else None,
        uniform_nats_per_token=uniform,
        bits_per_dimension=None if pixels is None else total / pixels / math.log(2),
        dimensions=pixels,
        nats_per_scale=tuple(scales) if isinstance(model.order, ScaleOrder) else None,
    )


def _scale_sizes(model: GenerativeModel) -> list[int]:
    return model.order.sizes if isinstance(model.order, ScaleOrder) else [model.order.num_tokens]


def _scored(model: GenerativeModel) -> str:
    tokenizer = model.tokenizer
    if tokenizer.codebook_size is not None:
        return f"tokens, each one of {tokenizer.codebook_size} codes (not pixels)"
    if model.measure == "probability":
        grey = " grey" if getattr(tokenizer.config, "grey", False) else ""
        return f"8-bit{grey} pixels, exact"
    return f"density of tokens of {tokenizer.token_channels} continuous values (not pixels)"


def _order(model: GenerativeModel) -> str:
    if isinstance(model.order, ScaleOrder):
        return f"scales of side {', '.join(map(str, model.order.patch_nums))}"
    return f"{getattr(model.config, 'order', 'own')} order, no token known beforehand"
