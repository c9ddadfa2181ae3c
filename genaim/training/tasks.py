"""What a run trains: a tokenizer or a generator behind one protocol, so that the trainer knows neither.

The trainer wraps `Task.module`, whose forward pass is the loss of a micro-batch (for several processes, sharding and
autocast); the task adds what happens after a step and what a validation measures and shows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genaim.core.noise import Noise
from genaim.data import Batch
from genaim.models import GenerativeModel
from genaim.models.base import Loss
from genaim.tokenizers import MultiScaleVQ
from genaim.training.tokenizer_loss import (
    Discriminator,
    TokenizerLossConfig,
    adaptive_weight,
    discriminator_loss,
    load_perceptual,
)

SampleFn = Callable[[GenerativeModel, Tensor, int], Tensor]
"""Model, labels (B,) and seed to images (B, 3, H, W); training imports no sampler."""
Totals = dict[str, tuple[Tensor, Tensor]]
"""Sums and counts by name."""


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
        return self.model.loss(batch.tokens, batch.labels, noise=noise)


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
        """Samples, the classes in turn."""
        if self.sample_fn is None:
            return None
        labels = torch.arange(self.num_pictures, device=self.model.device) % max(self.model.config.num_classes, 1)
        return self.sample_fn(self.model, labels, 0)


class TokenizerLoss(nn.Module):
    """Reconstruction, codebook, perceptual and adversarial terms of a multi-scale VQ tokenizer."""

    def __init__(self, model: MultiScaleVQ, config: TokenizerLossConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.frozen: dict[str, nn.Module] = {}  # a dict hides them: they are not trained by this module's optimiser

    def forward(self, batch: Batch, noise: Noise, step: int) -> Loss:
        """Sum over images of the weighted terms; parts hold each term, unweighted."""
        assert batch.images is not None
        c, images = self.config, batch.images
        quantized = self.model.quantize_for_training(self.model.encode_latent(images))
        reconstruction = self.model.decode_latent(quantized.latent)
        error = reconstruction.float() - images
        terms = {
            "l1": error.abs().flatten(1).mean(1),
            "l2": error.square().flatten(1).mean(1),
            "codebook": quantized.loss,
        }
        if "perceptual" in self.frozen:
            terms["perceptual"] = self.frozen["perceptual"](reconstruction.float().clamp(-1, 1), images).flatten()
        total = sum((getattr(c, name) * term for name, term in terms.items()), torch.zeros(len(images)).to(error))
        if "adversary" in self.frozen and step >= c.adversarial_start:
            fooled = -self.frozen["adversary"](reconstruction).float().flatten(1).mean(1)
            if torch.is_grad_enabled():
                matched = (total - c.codebook * terms["codebook"]).sum()
                weight = adaptive_weight(matched, fooled.sum(), self.model.decoder.last_layer)
                total = total + c.adversarial * weight * fooled
            terms["adversarial"] = fooled
        count = error.new_full((), len(images))
        outputs = {
            "images": images,
            "reconstruction": reconstruction.detach().float(),
            "tokens": quantized.tokens,
            "vectors": quantized.vectors,
        }
        return Loss(total.sum(), count, {n: (t.detach().sum(), count) for n, t in terms.items()}, outputs)


class TokenizerTask(Task):
    """Trains a multi-scale VQ tokenizer."""

    model: MultiScaleVQ
    module: TokenizerLoss
    collapse_below = 0.1
    """Share of the codebook, by perplexity over all scales, below which a validation warns."""

    def __init__(self, model: MultiScaleVQ, config: TokenizerLossConfig) -> None:
        self.model, self.config = model, config
        self.module = TokenizerLoss(model, config)
        self.warnings: list[str] = []
        if config.adversarial > 0:
            self.adversary, self.adversary_lr = Discriminator(config.discriminator_channels), config.discriminator_lr
            self.module.frozen["adversary"] = self.adversary
        if config.perceptual > 0:
            perceptual, warning = load_perceptual(config.perceptual_required)
            self.warnings += [warning] if warning else []
            if perceptual is not None:
                self.module.frozen["perceptual"] = perceptual

    def to(self, device: torch.device) -> None:
        """Moves the tokenizer and the networks that judge it."""
        super().to(device)
        for module in self.module.frozen.values():
            module.to(device)

    def adversary_trains(self, step: int) -> bool:
        """From its first step on."""
        return self.config.adversarial > 0 and step >= self.config.adversarial_start

    def adversary_loss(self, adversary: nn.Module, outputs: dict[str, Tensor]) -> Loss:
        """Hinge loss of the PatchGAN."""
        losses = discriminator_loss(adversary(outputs["images"]).float(), adversary(outputs["reconstruction"]).float())
        return Loss(losses.sum(), losses.new_full((), len(losses)))

    def after_step(self, outputs: Sequence[dict[str, Tensor]], noise: Noise) -> dict[str, float]:
        """Codebook averages and revival."""
        codebook = self.model.codebook
        vectors = torch.cat([o["vectors"].flatten(0, 1) for o in outputs])
        tokens = torch.cat([o["tokens"].flatten() for o in outputs])
        revived = codebook.update(vectors, tokens, noise.uniform(codebook.config.size)[0])
        return {"revived_codes": float(revived)} if codebook.config.revive_below > 0 else {}

    def validate(self, batch: Batch, noise: Noise) -> Totals:
        """Loss terms, PSNR, and a histogram of codes for every scale."""
        loss: Loss = self.module(batch, noise, 0)
        images, reconstruction = loss.outputs["images"], loss.outputs["reconstruction"].clamp(-1, 1)
        # PSNR of images whose values span 2, mean over images
        psnr = -10 * torch.log10(((reconstruction - images) / 2).square().flatten(1).mean(1).clamp_min(1e-10))
        scales = self.model.split(loss.outputs["tokens"])
        codes = torch.stack([torch.bincount(m.flatten(), minlength=self.model.codebook_size) for m in scales])
        return {
            "loss": (loss.sum.detach(), loss.count),
            **loss.parts,
            "psnr": (psnr.sum(), loss.count),
            "codes": (codes.float(), torch.ones((), device=codes.device)),
        }

    def summarize(self, totals: Totals) -> tuple[dict[str, float], list[str]]:
        """Means, and usage and perplexity of the codebook for every scale; warns when it has collapsed."""
        codes, _ = totals["codes"]  # (K, V)
        figures, warnings = super().summarize({n: t for n, t in totals.items() if n != "codes"})
        for k, counts in enumerate([*codes, codes.sum(0)]):
            name = f"scale_{k + 1}" if k < len(codes) else "all"
            figures[f"usage_{name}"] = (counts > 0).float().mean().item()
            figures[f"perplexity_{name}"] = perplexity(counts)
        # A small validation set cannot use more codes than it has tokens.
        reachable = min(self.model.codebook_size, int(codes.sum()))
        if figures["perplexity_all"] < self.collapse_below * reachable:
            warnings.append(
                f"the codebook has collapsed: perplexity {figures['perplexity_all']:.1f} of {self.model.codebook_size} "
                "codes. Set tokenizer.codebook.revive_below=0.05, or lower optimizer.lr."
            )
        return figures, warnings

    def pictures(self, batch: Batch | None) -> Tensor | None:
        """Images above their reconstructions, eight to a row."""
        if batch is None or batch.images is None:
            return None
        images = batch.images[:16]
        reconstruction = self.model.decode(self.model.encode(images))
        rows = zip(images.split(8), reconstruction.split(8), strict=True)
        return torch.cat([half for pair in rows for half in pair])


def perplexity(counts: Tensor) -> float:
    """Exponential of the entropy of a histogram: how many codes are used as if equally often."""
    share = counts / counts.sum().clamp_min(1)
    return float(torch.special.entr(share).sum().exp())
