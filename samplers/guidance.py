"""Guidance schedules: the guidance scale of a step.

All end at (or towards) ``guidance_scale`` and are 1.0, that is off, where the published ones are 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genaim.core.order import Step
from genaim.models.base import GuidanceSchedule

Schedule = Callable[[float, Step], Tensor]


def constant(guidance_scale: float, step: Step) -> Tensor:
    """The same scale at every step, (B,)."""
    return torch.full_like(step.share, guidance_scale)


def linear_in_step(guidance_scale: float, step: Step) -> Tensor:
    """``1 + (guidance_scale - 1) k / (K - 1)`` at step k of K, (B,): VAR's ramp; its published cfg is ours minus 1."""
    ramp = step.number / max(step.total - 1, 1)
    return torch.full_like(step.share, 1 + (guidance_scale - 1) * ramp)


def linear_in_share(guidance_scale: float, step: Step) -> Tensor:
    """``1 + (guidance_scale - 1) x share known when the step ends``, (B,): MAR's schedule."""
    return 1 + (guidance_scale - 1) * step.share


SCHEDULES: dict[GuidanceSchedule, Schedule] = {
    "constant": constant,
    "linear_in_step": linear_in_step,
    "linear_in_share": linear_in_share,
}
