"""Training of classifiers on features or images by the schedules of papers.

A `Training` is what a paper prescribes, and `plan` fits it to a data set: a batch cannot be larger than that.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genaim.core.progress import Progress
from genaim.training.config import OptimizerConfig
from genaim.training.optimizer import learning_rate

Report = Callable[[int, int], None]
"""Told how many of how many steps are done."""


def steps_of(progress: Progress, what: str) -> Report:
    """Tells the steps of a training, which has a bar of its own."""

    def report(step: int, steps: int) -> None:
        if step == 1:
            progress.start(what, 0, steps)
        progress.advance(step, {})

    return report


@dataclass(frozen=True)
class Training:
    """The schedule of a paper."""

    module: Literal["linear", "attentive", "whole"]
    """What is trained: a linear layer behind a batch norm, an attentive probe, or the model and a linear layer."""
    lrs: tuple[float, ...]
    """Peak learning rates; of several the best on a part of the training images is taken."""
    epochs: int
    """Passes over the images."""
    batch_size: int
    """Images of a step."""
    scaled: bool = False
    """Whether the learning rate is for 256 images, and grows with the batch."""
    warmup: float = 0.0
    """Share of the steps with linear warm-up, before a cosine."""
    final_lr_share: float = 0.0
    """Last learning rate over the peak."""
    optimizer: Literal["adamw", "lars"] = "adamw"
    """LARS is SGD with steps in proportion to the weights."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's moments; the first is the momentum of LARS."""
    weight_decay: float = 0.0
    """Decay of matrices; vectors are not decayed."""
    clip_norm: float | None = None
    """Largest gradient norm."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread over all classes."""
    layer_decay: float = 1.0
    """Learning rate of a block over that of the one behind it, in fine-tuning."""


@dataclass(frozen=True)
class Plan:
    """A schedule over a data set."""

    batch_size: int
    """Images of a step."""
    steps: int
    """Steps of all epochs."""
    optimizer: OptimizerConfig
    """Learning rate and what else a step needs."""


def plan(training: Training, count: int, lr: float | None = None) -> Plan:
    """Fits a schedule to ``count`` images; None takes the first of its learning rates.

    Raises:
        ValueError: If there are fewer than two images, or a batch has.
    """
    size = min(training.batch_size, count)
    if size < 2:
        raise ValueError(f"{count} images in batches of {size} train no probe; give 2 or more of both.")
    steps = training.epochs * (count // size)  # what an epoch leaves over from whole batches is dropped
    peak = training.lrs[0] if lr is None else lr
    return Plan(
        size,
        steps,
        OptimizerConfig(
            lr=peak * (size / 256 if training.scaled else 1.0),
            betas=training.betas,
            weight_decay=training.weight_decay,
            warmup_steps=round(training.warmup * steps),
            final_lr_share=training.final_lr_share,
            clip_norm=training.clip_norm,
        ),
    )


def shuffled(count: int, plan: Plan, seed: int) -> Iterator[Tensor]:
    """The rows of every step, (batch_size,) int64: every epoch in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    step = 0
    while step < plan.steps:
        for rows in torch.randperm(count, generator=generator).split(plan.batch_size):
            if len(rows) == plan.batch_size and step < plan.steps:
                yield rows
                step += 1


def train_classifier(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    training: Training,
    plan: Plan,
    *,
    lr_share: Callable[[str], float] = lambda name: 1.0,
    report: Report | None = None,
) -> None:
    """Trains a classifier by cross-entropy.

    Args:
        module: Inputs to logits, (B, num_classes).
        batches: Inputs and labels (B,) int64 of every step, on the module's device.
        training: The schedule.
        plan: The same, for the data.
        lr_share: Learning rate of a weight over that of the step, by the weight's name.
        report: Told about every step.

    Raises:
        ValueError: If the loss is not finite.
    """
    optimizer = _make_optimizer(module, training, plan.optimizer.lr, lr_share)
    module.train()
    for step, (inputs, labels) in enumerate(batches):
        lr = learning_rate(plan.optimizer, step, plan.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"]
        loss = F.cross_entropy(module(inputs).float(), labels, label_smoothing=training.label_smoothing)
        if not bool(loss.isfinite()):
            raise ValueError(f"step {step + 1} of the probe: the loss is {loss.item()}; its features are too large.")
        optimizer.zero_grad()
        loss.backward()
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm)
        optimizer.step()
        if report is not None:
            report(step + 1, plan.steps)
    module.eval()


def _make_optimizer(
    module: nn.Module, training: Training, lr: float, lr_share: Callable[[str], float]
) -> torch.optim.Optimizer:
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((lr_share(name), parameter.dim() > 1), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": found, "share": share, "weight_decay": training.weight_decay if decays else 0.0}
        for (share, decays), found in groups.items()
    ]
    if training.optimizer == "lars":
        return LARS(listed, lr=lr, momentum=training.betas[0])
    return torch.optim.AdamW(listed, lr=lr, betas=training.betas)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step on a matrix is a share of the matrix's norm (You et al. 2017, arXiv 1708.03888).

    Vectors take plain steps, as in MAE's linear probe.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, trust: float = 1e-3) -> None:
        """Takes what MAE's code takes; `trust` is the share."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                direction = parameter.grad
                if parameter.dim() > 1:
                    direction = direction + group["weight_decay"] * parameter
                    size, length = parameter.norm(), direction.norm()
                    if size > 0 and length > 0:
                        direction = direction * (group["trust"] * size / length)
                state = self.state[parameter]
                state["velocity"] = direction + group["momentum"] * state.get("velocity", torch.zeros_like(direction))
                parameter -= group["lr"] * state["velocity"]
