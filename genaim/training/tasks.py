"""What a run trains, behind one protocol, so that the trainer need not know; tokenizers are in `tokenizer_tasks`.

The trainer wraps `Task.module`, whose forward pass is the loss of a micro-batch (for several processes, sharding and
autocast); the task adds what happens after a step and what a validation measures and shows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genaim.core.noise import Noise, NoiseSource
from genaim.data import Batch
from genaim.models import Encoder, GenerativeModel
from genaim.models.base import Loss, Totals

SampleFn = Callable[[GenerativeModel, Tensor, int, Tensor | None], Tensor]
"""Model, labels (B,), seed and images to enlarge, if any, to images (B, 3, H, W); training imports no sampler."""


class Task(ABC):
    """What a run trains."""

    model: nn.Module
    """What is exported."""
    module: nn.Module
    """Called as ``module(batch, noise, step) -> Loss``; trained by the main optimiser."""
    adversary: nn.Module | None = None
    """A module with an optimiser of its own, trained after the main step."""
    adversary_lr: float = 0.0

    def to(self, device: torch.device) -> None:
        """Moves everything that the task computes with."""
        self.model.to(device)

    def weights(self) -> dict[str, Tensor]:
        """The weights and buffers to store."""
        return self.model.state_dict()

    def adversary_trains(self, step: int) -> bool:
        """Whether the adversary takes a step after the main one."""
        return False

    def adversary_loss(self, adversary: nn.Module, outputs: dict[str, Tensor]) -> Loss:
        """Loss of the adversary on a micro-batch's outputs."""
        raise ValueError(f"{type(self).__name__} has no adversary.")

    def after_step(self, outputs: Sequence[dict[str, Tensor]], noise: Noise) -> dict[str, float]:
        """Work after the optimiser's step on the outputs of its micro-batches; returns what to log.

        ``noise`` has one row and is equal on all processes.
        """
        return {}

    @abstractmethod
    def validate(self, batch: Batch, noise: Noise) -> Totals:
        """Sums and counts of a validation batch; ``loss`` is among them."""

    def summarize(self, totals: Totals) -> tuple[dict[str, float], list[str]]:
        """Figures and warnings of a validation, from the totals of all batches and processes."""
        return {name: (total / count.clamp_min(1)).item() for name, (total, count) in totals.items()}, []

    @abstractmethod
    def pictures(self, batch: Batch | None) -> Tensor | None:
        """Images for the grid of a validation, (n, 3, H, W) in [-1, 1].

        Args:
            batch: The first batch of the validation set.
        """


class GeneratorLoss(nn.Module):
    """The teacher-forced loss of a generator, from cached tokens."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, noise: Noise, step: int) -> Loss:
        """The model's own loss."""
        assert batch.tokens is not None
        tokens = self.model.from_cache(batch.tokens, noise)
        return self.model.loss(tokens, batch.labels, noise=noise, low_res=batch.low_res)


class GeneratorTask(Task):
    """Trains a generator over a frozen tokenizer."""

    model: GenerativeModel

    def __init__(self, model: GenerativeModel, sample_fn: SampleFn | None, num_pictures: int = 16) -> None:
        """Takes the model and how to sample it; without a ``sample_fn`` validations show nothing."""
        self.model, self.module = model, GeneratorLoss(model)
        self.sample_fn, self.num_pictures = sample_fn, num_pictures

    def weights(self) -> dict[str, Tensor]:
        """The generator's weights; the tokenizer has its own file."""
        return self.model.state_dict_without_tokenizer()

    def validate(self, batch: Batch, noise: Noise) -> Totals:
        """Validation loss and its parts."""
        loss: Loss = self.module(batch, noise, 0)
        return {"loss": (loss.sum.detach(), loss.count), **loss.parts}

    def pictures(self, batch: Batch | None) -> Tensor | None:
        """Samples, the classes in turn; of a model that enlarges images, these above the results."""
        if self.sample_fn is None:
            return None
        if self.model.low_res_prefix is not None:
            return self._enlarged(batch)
        labels = torch.arange(self.num_pictures, device=self.model.device) % max(self.model.config.num_classes, 1)
        return self.sample_fn(self.model, labels, 0, None)

    def _enlarged(self, batch: Batch | None) -> Tensor | None:
        if batch is None or batch.low_res is None or self.sample_fn is None:
            return None
        low_res = batch.low_res[: self.num_pictures]
        labels = self.model.class_embed.or_null(batch.labels[: self.num_pictures])
        images = self.sample_fn(self.model, labels, 0, low_res)
        return in_pairs(F.interpolate(low_res, size=images.shape[-2:], mode="nearest"), images)


class EncoderLoss(nn.Module):
    """The pre-training loss of an encoder, from images."""

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, noise: Noise, step: int) -> Loss:
        """The encoder's own loss."""
        assert batch.images is not None
        return self.model.loss(batch.images, noise=noise)


class EncoderTask(Task):
    """Pre-trains an encoder."""

    model: Encoder

    def __init__(self, model: Encoder) -> None:
        self.model, self.module = model, EncoderLoss(model)

    def validate(self, batch: Batch, noise: Noise) -> Totals:
        """Validation loss; every image has the same random numbers in every validation."""
        loss: Loss = self.module(batch, noise, 0)
        return {"loss": (loss.sum.detach(), loss.count), **loss.parts}

    def pictures(self, batch: Batch | None) -> Tensor | None:
        """Images above what is predicted of them, eight to a row."""
        if batch is None or batch.images is None:
            return None
        images = batch.images[:16]
        return in_pairs(images, self.model.show(images, noise=NoiseSource(0, batch.index[:16])))


def in_pairs(images: Tensor, others: Tensor) -> Tensor:
    """Rows of eight images, each row above that of their counterparts."""
    rows = zip(images.split(8), others.split(8), strict=True)
    return torch.cat([half for pair in rows for half in pair])
