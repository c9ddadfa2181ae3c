"""The one loop: generation, and completion of images of which some tokens are given, over any model."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genaim.config import nearest
from genaim.core.noise import Noise
from genaim.core.order import SequenceOrder, Step
from genaim.heads import SamplingOptions
from genaim.models import GenerativeModel, Given
from genaim.models.base import GuidanceSchedule, gather
from samplers.guidance import SCHEDULES

StepCallback = Callable[[Step, Tensor], None]
"""Called after every step with the step and the canvas of tokens; raising stops the generation."""


def check_inputs(
    model: GenerativeModel,
    labels: Tensor,
    given: Given | None,
    low_res: Tensor | None,
    guidance_scale: float | None,
    num_steps: int | None,
) -> None:
    """Checks what can be told without reading a tensor.

    Raises:
        ValueError: If labels are no integers (B,), what is given has another number of rows or tokens, the guidance is
            not finite or of a model without classes, or there is no step.
    """
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32) or labels.dim() != 1:
        is_tensor = isinstance(labels, Tensor)
        found = f"{labels.dtype} of shape {tuple(labels.shape)}" if is_tensor else f"a {type(labels).__name__}"
        raise ValueError(f"labels must be a tensor of integers, (B,), such as torch.tensor([0, 3]), not {found}.")
    if given is not None:
        rows = (len(labels), model.order.num_tokens)
        for name, values in zip(given._fields, given, strict=True):
            if values.shape[:2] != rows:
                raise ValueError(
                    f"given.{name} must be {rows} for {rows[0]} labels and the model's {rows[1]} tokens, not "
                    f"{tuple(values.shape)}."
                )
        if given.known.dtype != torch.bool:
            raise ValueError(f"given.known must be bool, True where a token is given, not {given.known.dtype}.")
    if low_res is not None and len(low_res) != len(labels):
        raise ValueError(f"low_res has {len(low_res)} images for {len(labels)} labels; give one for each.")
    if guidance_scale is not None and not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, not {guidance_scale}; 1.0 is off.")
    unconditional = not model.config.num_classes and model.low_res_prefix is None
    if guidance_scale not in (None, 1.0) and unconditional:
        raise ValueError(f"guidance_scale {guidance_scale:g} needs classes, and the model has none; leave it out.")
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"{num_steps} steps are asked for; ask for 1 or more.")


@torch.no_grad()
def decode(
    model: GenerativeModel,
    labels: Tensor,
    *,
    noise: Noise,
    given: Given | None = None,
    low_res: Tensor | None = None,
    options: SamplingOptions | None = None,
    guidance_scale: float = 1.0,
    guidance_schedule: GuidanceSchedule | None = None,
    num_steps: int | None = None,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Generates the tokens of a batch of images.

    Args:
        model: Any genaim generator, in evaluation mode.
        labels: Classes, (B,) int64; ``num_classes`` is the null class.
        noise: Random numbers, one row per image.
        given: Tokens to complete, for inpainting and its kin; None generates all.
        low_res: Images to enlarge, (B, 3, s, s) in [-1, 1], for models that are conditioned on them.
        options: Temperature and truncation; None draws from the model's distribution as it is.
        guidance_scale: ``uncond + guidance_scale * (cond - uncond)``; 1.0 is off and computes no null class.
        guidance_schedule: Name in `SCHEDULES`; None takes the one that the model was published with.
        num_steps: Number of steps, for orders that can choose it.
        on_step: Told about every step.

    Returns:
        Tokens, (B, N) int64 or (B, N, C).

    Raises:
        ValueError: If an input has another shape or type, an option does not fit the model, or the schedule would make
            an image depend on its batch.
    """
    check_inputs(model, labels, given, low_res, guidance_scale, num_steps)
    options = options or SamplingOptions()
    model.head.check_options(options)
    name = guidance_schedule or model.guidance_schedule
    if name not in SCHEDULES:
        raise ValueError(f"unknown guidance schedule '{name}'; {nearest(name, SCHEDULES)}.")
    guided = guidance_scale != 1.0
    if guided and name == "linear_in_step" and given is not None and isinstance(model.order, SequenceOrder):
        raise ValueError(
            "guidance schedule 'linear_in_step' goes by the number of steps, which in a batch of sequences is that of "
            "the image with the fewest given tokens; take linear_in_share or constant."
        )
    schedule = SCHEDULES[name]
    state = model.start(labels, guided=guided, given=given, low_res=low_res)
    nothing = torch.zeros(len(labels), model.order.num_tokens, dtype=torch.bool, device=labels.device)
    known = nothing if given is None else model.context(given.known)
    for step in model.order.steps(known, num_steps, noise):
        features, uncond = model.predict(state, step.positions)
        fixed = given_whole(given, step.positions)
        if fixed is not None:  # nothing to draw, but the draws count: rows do not depend on each other
            features, uncond = features[:, :0], None if uncond is None else uncond[:, :0]
        tokens = model.head.sample(
            features,
            options,
            uncond_features=uncond,
            guidance_scale=schedule(guidance_scale, step),
            noise=noise,
        )
        tokens = model.keep_known(state, step.positions, tokens if fixed is None else fixed)
        model.commit(state, step.positions, tokens)
        if on_step is not None:
            on_step(step, state.tokens)
    return state.tokens


def given_whole(given: Given | None, positions: Tensor) -> Tensor | None:
    """The tokens of a step, (B, n) or (B, n, C), if all are given, as those of coarse scales may be; else None."""
    if given is None or not gather(given.known, positions).all():
        return None
    return gather(given.tokens, positions)
