"""The training objective of a tokenizer: reconstruction, perceptual and adversarial terms.

As in VQGAN (Esser et al. 2021, https://arxiv.org/abs/2012.09841, section 3.1 and eq. 7): the adversarial term is
weighted by the ratio of gradient norms at the decoder's last layer, from a given step on. Every term is a mean per
image, so that a batch can be normalised by its global size.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genaim.config import Config, one_line


class TokenizerLossConfig(Config):
    """Weights of the terms."""

    l1: float = Field(0.2, ge=0)
    """Weight of the absolute error."""
    l2: float = Field(1.0, ge=0)
    """Weight of the squared error."""
    codebook: float = Field(1.0, ge=0)
    """Weight of commitment and codebook loss of a VQ tokenizer."""
    kl: float = Field(3e-4, ge=0)
    """Weight of a KL autoencoder's divergence from N(0, 1), in nats per latent value."""
    perceptual: float = Field(0.0, ge=0)
    """Weight of LPIPS (Zhang et al. 2018), which downloads VGG weights on first use."""
    perceptual_required: bool = True
    """Whether the run stops when the LPIPS weights cannot be had; false goes on without the term, saying so."""
    adversarial: float = Field(0.0, ge=0)
    """Weight of the PatchGAN term; 0 builds no discriminator."""
    adversarial_start: int = Field(0, ge=0)
    """Step from which the PatchGAN trains and counts."""
    discriminator_channels: int = Field(64, gt=0)
    """Channels of its first layer; doubled twice."""
    discriminator_lr: float = Field(1e-4, gt=0)
    """Its learning rate (AdamW, betas 0.5, 0.9)."""


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, https://arxiv.org/abs/1611.07004): a logit per patch of the image.

    GroupNorm instead of the published BatchNorm, so that rows do not see each other.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 2 * channels, 4 * channels)
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after, stride in zip(widths, (*widths[1:], widths[-1]), (2, 2, 1), strict=True):
            layers += [nn.Conv2d(before, after, 4, stride, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to logits (B, 1, h, w), high for real patches."""
        out: Tensor = self.layers(images)
        return out


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of every image, (B,)."""
    return 0.5 * (F.relu(1 - real_logits).flatten(1).mean(1) + F.relu(1 + fake_logits).flatten(1).mean(1))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the two losses' gradient norms at the last layer, at most 10^4, without gradient (VQGAN, eq. 7)."""
    (grad_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (grad_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio: Tensor = grad_reconstruction.norm() / (grad_adversarial.norm() + 1e-4)
    return ratio.clamp(0, 1e4).detach()


def load_perceptual(required: bool) -> tuple[nn.Module | None, str | None]:
    """LPIPS with VGG features from torchmetrics, and a warning when it cannot be had.

    Raises:
        ValueError: If it is required but its package or weights are missing.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg", reduction="none")
        return metric.net.requires_grad_(False).eval(), None
    except Exception as error:  # a missing package, a refused download or a damaged file end alike here
        reason = one_line(error)
        text = f"the perceptual loss cannot be loaded ({type(error).__name__}: {reason})"
        if required:
            missing = isinstance(error, ImportError)
            remedy = "pip install 'genaim[perceptual]'" if missing else "put vgg16-397923af.pth into torch's hub folder"
            raise ValueError(
                f"{text}; {remedy}, or set loss.perceptual=0 or loss.perceptual_required=false to train without it."
            ) from None
        return None, f"{text}; training goes on without it."
