"""Images from classes."""

from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor

from genaim.core.hardware import autocast
from genaim.core.noise import NoiseSource
from genaim.heads import SamplingOptions
from genaim.models import GenerativeModel, Given
from genaim.models.base import GuidanceSchedule
from samplers.decode import StepCallback, check_inputs, decode

DECODED_PIXELS, DECODED_PIXELS_CUDA = 2**18, 2**22
"""Most pixels that are decoded at once, 4 and 64 images of 256 pixels. The decoder of VAR holds about 4 KB for each."""


class Sampling(TypedDict, total=False):
    """The arguments of `generate` that every sampler hands on to it."""

    seed: int
    batch_size: int | None
    options: SamplingOptions | None
    guidance_scale: float | None
    guidance_schedule: GuidanceSchedule | None
    num_steps: int | None
    dtype: torch.dtype
    on_step: StepCallback | None


@torch.no_grad()
def generate(
    model: GenerativeModel,
    labels: Tensor,
    *,
    given: Given | None = None,
    low_res: Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int | None = None,
    options: SamplingOptions | None = None,
    guidance_scale: float | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    num_steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Generates one image per label.

    Image i depends on the seed, its index and its label, not on the batch it is computed in.

    Args:
        model: Any genaim generator; it is put into evaluation mode.
        labels: Classes, (B,) int64 in [0, num_classes]; ``num_classes`` is the null class.
        given: Tokens to complete, one row per label; None generates all.
        low_res: Images to enlarge, (B, 3, s, s) in [-1, 1], for models that are conditioned on them.
        seed: Seed of all images.
        first_index: Index of the first image, for a run that is generated in parts.
        batch_size: Images computed together; None takes all.
        options: Temperature and truncation; None takes the model's defaults.
        guidance_scale: 1.0 is off; None takes the model's default.
        guidance_schedule: Name in `samplers.guidance.SCHEDULES`; None takes the model's default.
        num_steps: Number of steps, for orders that can choose it; None takes the model's default.
        dtype: Number format of matrix products.
        on_step: Told about every step of every batch.

    Returns:
        Images, (B, 3, H, W) float32 in [-1, 1], on the model's device.

    Raises:
        ValueError: If there is no label, an input has another shape or type, or an option does not fit the model.
    """
    batches = generate_batches(
        model,
        labels,
        given=given,
        low_res=low_res,
        seed=seed,
        first_index=first_index,
        batch_size=batch_size,
        options=options,
        guidance_scale=guidance_scale,
        guidance_schedule=guidance_schedule,
        num_steps=num_steps,
        dtype=dtype,
        on_step=on_step,
    )
    return torch.cat(list(batches))


@torch.no_grad()
def generate_batches(
    model: GenerativeModel,
    labels: Tensor,
    *,
    given: Given | None = None,
    low_res: Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int | None = None,
    options: SamplingOptions | None = None,
    guidance_scale: float | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    num_steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    on_step: StepCallback | None = None,
) -> Iterator[Tensor]:
    """`generate`, batch by batch, so that a long run can be written as it goes."""
    check_inputs(model, labels, given, low_res, guidance_scale, num_steps)
    if len(labels) == 0:
        raise ValueError("there is nothing to generate: 0 images were asked for; ask for 1 or more.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"the batch size must be 1 or more, not {batch_size}.")
    if model.prepared not in (None, dtype):
        raise ValueError(
            f"the model is prepared for {model.prepared}, not for {dtype}; pass that dtype, or load it anew."
        )
    defaults = model.config.sampling
    if options is None:
        options = defaults.options()
    if num_steps is None:
        num_steps = defaults.num_steps
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    model.eval()
    labels = labels.to(model.device)
    indices = torch.arange(first_index, first_index + len(labels), device=model.device)
    size = batch_size or len(labels)
    for first in range(0, len(labels), size):
        rows = slice(first, first + size)
        with autocast(model.device, dtype):
            tokens = decode(
                model,
                labels[rows],
                given=None if given is None else Given(*(x[rows].to(model.device) for x in given)),
                noise=NoiseSource(seed, indices[rows]),
                low_res=None if low_res is None else low_res[rows].to(model.device),
                options=options,
                guidance_scale=scale,
                guidance_schedule=guidance_schedule or defaults.guidance_schedule,
                num_steps=num_steps,
                on_step=on_step,
            )
            images = torch.cat([model.tokenizer.decode(part) for part in parts_to_decode(model, tokens)])
        yield images  # outside, or the caller would compute under autocast too


def parts_to_decode(model: GenerativeModel, tokens: Tensor) -> tuple[Tensor, ...]:
    """Tokens of a batch in parts whose images have so many pixels that the decoder's activations fit in memory."""
    pixels = DECODED_PIXELS_CUDA if model.device.type == "cuda" else DECODED_PIXELS
    count = pixels // model.tokenizer.image_size**2
    parts: tuple[Tensor, ...] = tokens.split(max(1, count))
    return parts
