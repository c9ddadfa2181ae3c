"""Fine-tuning: a model whose weights go on learning with a linear classifier on its pooled features.

The schedule is `Training`, by default MAE's (He et al. 2021, https://arxiv.org/abs/2111.06377, table 9): AdamW, and a
learning rate that shrinks from block to block towards the pixels.
"""

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from genaim.data import Batch, make_loader
from genaim.data.loader import MapDataset
from genaim.evaluation.features import FeatureModel
from genaim.evaluation.probe_training import Report, Training, plan, train_classifier
from genaim.models.encoder import combined


class FineTuned(nn.Module):
    """A model, a layer norm behind the mean over its patches, and a linear layer."""

    def __init__(self, model: FeatureModel, num_classes: int) -> None:
        """Takes a copy of the model, so that the given one stays as it is."""
        super().__init__()
        self.model: Any = copy.deepcopy(model)
        width = self.model.config.width
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to logits, (B, num_classes)."""
        model = self.model
        pooled = combined(model.hidden_states(images), model.layers(None), model.final_norm, "mean")
        logits: Tensor = self.linear(self.norm(pooled))
        return logits

    def lr_share(self, name: str, decay: float) -> float:
        """Learning rate of a weight over that of the classifier: blocks have one power of the decay each."""
        if not name.startswith("model."):
            return 1.0
        depth: int = self.model.config.depth
        block = re.match(r"model\.transformer\.blocks\.(\d+)\.", name)
        if block:
            return decay ** (depth - int(block[1]))
        return 1.0 if name.startswith("model.transformer.") else decay ** (depth + 1)


def fine_tune(
    model: FeatureModel,
    data: MapDataset,
    num_classes: int,
    training: Training,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    report: Report | None = None,
) -> FineTuned:
    """Trains a copy of a model to classify.

    Args:
        model: Encoder, or a generator that gives features.
        data: Training images, with the augmentation of their recipe.
        num_classes: Classes.
        training: The schedule, of which the first learning rate is taken.
        seed: Seed of the classifier, the order of images and their augmentation.
        device: Where to compute.
        num_workers: Processes that decode images.
        report: Told about every step.

    Returns:
        In evaluation mode.

    Raises:
        ValueError: If an image has no class.
    """
    wanted = plan(training, sum(data.lengths))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = FineTuned(model, num_classes).to(device)
    tuned.requires_grad_(True)
    if hasattr(tuned.model, "freeze_tokenizer"):
        tuned.model.freeze_tokenizer()
    loader = make_loader(data, batch_size=wanted.batch_size, seed=seed, num_workers=num_workers)
    batches = (_checked(next(loader), device) for _ in range(wanted.steps))
    train_classifier(
        tuned,
        batches,
        training,
        wanted,
        lr_share=lambda name: tuned.lr_share(name, training.layer_decay),
        report=report,
    )
    return tuned


def _checked(batch: Batch, device: torch.device | str) -> tuple[Tensor, Tensor]:
    assert batch.images is not None
    if bool((batch.labels < 0).any()):
        raise ValueError("some training images have no class to fine-tune for; use data with classes.")
    return batch.images.to(device), batch.labels.to(device)


@torch.no_grad()
def tuned_accuracy(
    tuned: FineTuned, batches: Iterable[Batch], device: torch.device | str, report: Callable[[int], None] | None = None
) -> float:
    """Share of images whose class a fine-tuned model says.

    Raises:
        ValueError: If there are no images.
    """
    right: list[Tensor] = []
    for batch in batches:
        if len(batch):
            assert batch.images is not None
            right.append(tuned(batch.images.to(device)).argmax(1).cpu() == batch.labels)
        if report is not None:
            report(sum(map(len, right)))
    if not right:
        raise ValueError("there are no images to judge on; give at least one.")
    return torch.cat(right).double().mean().item()
