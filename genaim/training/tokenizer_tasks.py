"""Training of tokenizers: reconstruction, perceptual and adversarial terms, and what each family adds."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genaim.core.noise import Noise
from genaim.data import Batch
from genaim.models.base import Loss, Totals
from genaim.tokenizers import KLAutoencoder, MultiScaleVQ, TrainableTokenizer
from genaim.training.tasks import Task, in_pairs
from genaim.training.tokenizer_loss import (
    Discriminator,
    TokenizerLossConfig,
    adaptive_weight,
    discriminator_loss,
    load_perceptual,
)


class TokenizerLoss(nn.Module):
    """Reconstruction, perceptual and adversarial terms, and those of the tokenizer itself."""

    def __init__(self, model: TrainableTokenizer, config: TokenizerLossConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.frozen: dict[str, nn.Module] = {}  # a dict hides them: they are not trained by this module's optimiser

    def forward(self, batch: Batch, noise: Noise, step: int) -> Loss:
        """Sum over images of the weighted terms; parts hold each term, unweighted."""
        assert batch.images is not None
        c, images = self.config, batch.images
        reconstruction, own_terms, own_outputs = self.model.training_pass(images, noise)
        error = reconstruction.float() - images
        terms = {
            "l1": error.abs().flatten(1).mean(1),
            "l2": error.square().flatten(1).mean(1),
            **own_terms,
        }
        if "perceptual" in self.frozen:
            terms["perceptual"] = self.frozen["perceptual"](reconstruction.float().clamp(-1, 1), images).flatten()
        total = sum((getattr(c, name) * term for name, term in terms.items()), torch.zeros(len(images)).to(error))
        if "adversary" in self.frozen and step >= c.adversarial_start:
            fooled = -self.frozen["adversary"](reconstruction).float().flatten(1).mean(1)
            if torch.is_grad_enabled():
                matched = (total - sum(getattr(c, name) * term for name, term in own_terms.items())).sum()
                weight = adaptive_weight(matched, fooled.sum(), self.model.last_layer)
                total = total + c.adversarial * weight * fooled
            terms["adversarial"] = fooled
        count = error.new_full((), len(images))
        outputs = {"images": images, "reconstruction": reconstruction.detach().float(), **own_outputs}
        return Loss(total.sum(), count, {n: (t.detach().sum(), count) for n, t in terms.items()}, outputs)


TokenizerT = TypeVar("TokenizerT", bound=TrainableTokenizer)


class TokenizerTask(Task, Generic[TokenizerT]):
    """Trains a tokenizer."""

    model: TokenizerT
    module: TokenizerLoss

    def __init__(self, model: TokenizerT, config: TokenizerLossConfig) -> None:
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

    def validate(self, batch: Batch, noise: Noise) -> Totals:
        """Loss terms and PSNR."""
        loss: Loss = self.module(batch, noise, 0)
        images, reconstruction = loss.outputs["images"], loss.outputs["reconstruction"].clamp(-1, 1)
        # PSNR of images whose values span 2, mean over images
        psnr = -10 * torch.log10(((reconstruction - images) / 2).square().flatten(1).mean(1).clamp_min(1e-10))
        return {
            "loss": (loss.sum.detach(), loss.count),
            **loss.parts,
            "psnr": (psnr.sum(), loss.count),
            **self.own_totals(loss.outputs),
        }

    def own_totals(self, outputs: dict[str, Tensor]) -> Totals:
        """What else a validation of this family measures."""
        return {}

    def pictures(self, batch: Batch | None) -> Tensor | None:
        """Images above their reconstructions, eight to a row."""
        if batch is None or batch.images is None:
            return None
        images = batch.images[:16]
        return in_pairs(images, self.model.decode(self.model.encode(images)))


class VQTask(TokenizerTask[MultiScaleVQ]):
    """Trains a multi-scale VQ tokenizer."""

    collapse_below = 0.1
    """Share of the codebook, by perplexity over all scales, below which a validation warns."""

    def after_step(self, outputs: Sequence[dict[str, Tensor]], noise: Noise) -> dict[str, float]:
        """Codebook averages and revival."""
        codebook = self.model.codebook
        vectors = torch.cat([o["vectors"].flatten(0, 1) for o in outputs])
        tokens = torch.cat([o["tokens"].flatten() for o in outputs])
        revived = codebook.update(vectors, tokens, noise.uniform(codebook.config.size)[0])
        return {"revived_codes": float(revived)} if codebook.config.revive_below > 0 else {}

    def own_totals(self, outputs: dict[str, Tensor]) -> Totals:
        """A histogram of codes for every scale."""
        scales = self.model.split(outputs["tokens"])
        codes = torch.stack([torch.bincount(m.flatten(), minlength=self.model.codebook_size) for m in scales])
        return {"codes": (codes.float(), torch.ones((), device=codes.device))}

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
            revives = self.model.codebook.config.revive_below > 0
            advice = "" if revives else "set tokenizer.codebook.revive_below=0.05, or "
            warnings.append(
                f"the codebook has collapsed: perplexity {figures['perplexity_all']:.1f} of {self.model.codebook_size} "
                f"codes; {advice}lower optimizer.lr."
            )
        return figures, warnings


class KLTask(TokenizerTask[KLAutoencoder]):
    """Trains a KL autoencoder, and measures its latent scale on the way."""

    def after_step(self, outputs: Sequence[dict[str, Tensor]], noise: Noise) -> dict[str, float]:
        """Moves the latent scale, equally on all processes."""
        square = torch.cat([o["latent_square"] for o in outputs]).mean()
        if dist.is_initialized():
            dist.all_reduce(square)
            square = square / dist.get_world_size()
        self.model.update_scale(square)
        return {"latent_scale": self.model.latent_scale.item()}


def perplexity(counts: Tensor) -> float:
    """Exponential of the entropy of a histogram: how many codes are used as if equally often."""
    share = counts / counts.sum().clamp_min(1)
    return float(torch.special.entr(share).sum().exp())


TOKENIZER_TASKS: dict[str, type[TokenizerTask[Any]]] = {"multiscale_vq": VQTask, "kl": KLTask}
"""How each kind of tokenizer is trained."""
