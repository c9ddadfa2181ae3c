"""A codebook: nearest codes, their embeddings, and the ways to train them.

Codes follow the gradient of the codebook loss (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937) or an
exponential moving average of the vectors they code (its appendix A.1). Codes that are no longer used are replaced by
vectors of the current batch (Dhariwal et al. 2020, https://arxiv.org/abs/2005.00341, section 3.1). The decoder's
gradient reaches the encoder straight through, or rotated (Fifty et al. 2024, https://arxiv.org/abs/2410.06424).
"""

from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from genaim.config import Config
from genaim.core.noise import Noise, gumbel


class CodebookConfig(Config):
    """Size and training of a codebook."""

    size: int = Field(4096, ge=1)
    """Number of codes V."""
    update: Literal["gradient", "ema"] = "gradient"
    """gradient: codes follow the loss; ema: codes are moving averages of the vectors they code."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Decay of code averages, and of the usage statistics in both modes."""
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss."""
    revive_below: float = Field(0.0, ge=0, lt=1)
    """A code whose moving usage is below this share of the mean usage is replaced; 0 never replaces."""
    rotation: bool = False
    """Rotation trick instead of the straight-through gradient."""


class Codebook(nn.Module):
    """V codes of C channels, with usage statistics."""

    usage: Tensor
    sums: Tensor

    def __init__(self, config: CodebookConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.size, channels).uniform_(-1, 1) / config.size)
        self.weight.requires_grad_(config.update == "gradient")
        self.register_buffer("usage", torch.zeros(config.size))  # moving count of codings per batch
        if config.update == "ema":
            self.register_buffer("sums", torch.zeros(config.size, channels))

    def embed(self, tokens: Tensor) -> Tensor:
        """Codes of tokens, (...) int64 to (..., C)."""
        return nn.functional.embedding(tokens, self.weight)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Nearest codes by squared distance, (B, C, h, w) to (B, h, w) int64."""
        return self._distances(vectors).argmin(-1)

    @torch.no_grad()
    def draw(self, vectors: Tensor, temperature: float, noise: Noise) -> Tensor:
        """Codes drawn from softmax(-squared distance / temperature), (B, C, h, w) to (B, h, w) int64.

        The stochastic sampling of Lee et al. 2022, https://arxiv.org/abs/2203.01941.
        """
        distances = self._distances(vectors)
        uniform = noise.uniform(*distances.shape[1:])
        return (distances - temperature * gumbel(uniform)).argmin(-1)

    def _distances(self, vectors: Tensor) -> Tensor:
        """Squared distances to all codes, (B, h, w, V), less |x|^2, which is the same for all."""
        flat = vectors.movedim(1, -1)  # (B, h, w, C)
        codes = self.weight.to(flat.dtype)
        with torch.autocast(flat.device.type, enabled=False):  # in bf16 one code in twelve was another
            return codes.square().sum(1) - 2 * flat @ codes.T

    @torch.no_grad()
    def update(self, vectors: Tensor, tokens: Tensor, noise: Tensor) -> int:
        """After a step: usage, moving-average codes and revival, over the batches of all processes.

        Args:
            vectors: What was coded in the step, (M, C); every process holds equally many.
            tokens: The chosen codes, (M,) int64.
            noise: (V,) uniform numbers, equal on all processes, that choose the vectors of revived codes.

        Returns:
            Number of revived codes.
        """
        c = self.config
        counts = torch.bincount(tokens, minlength=c.size).to(self.usage)
        self.usage.lerp_(all_reduce(counts), 1 - c.ema_decay)
        if c.update == "ema":
            sums = torch.zeros_like(self.sums).index_add_(0, tokens, vectors.to(self.sums))
            self.sums.lerp_(all_reduce(sums), 1 - c.ema_decay)
            used = self.usage > 1e-6 * self.usage.sum()
            self.weight[used] = self.sums[used] / self.usage[used, None]
        return self._revive(vectors, noise) if c.revive_below > 0 else 0

    def _revive(self, vectors: Tensor, noise: Tensor) -> int:
        threshold = self.config.revive_below * self.usage.mean()
        dead = self.usage < threshold
        count = int(dead.sum())
        if count == 0:
            return 0
        pool = all_gather(vectors)
        chosen = (noise[dead] * len(pool)).long().clamp_max(len(pool) - 1)
        self.weight[dead] = pool[chosen].to(self.weight)
        # As if used at the mean rate, so that a revived code has time to find its place.
        mean = self.usage.mean()
        self.usage[dead] = mean
        if self.config.update == "ema":
            self.sums[dead] = self.weight[dead] * mean
        return count

    def pass_gradient(self, latent: Tensor, quantized: Tensor) -> Tensor:
        """The quantised latent, with the gradient handed to ``latent``.

        Straight through: the gradient as it is. Rotation trick: as if the latent had been rotated and scaled onto its
        quantisation by a constant matrix (Fifty et al. 2024, eq. 4), per position.
        """
        if not self.config.rotation:
            return latent + (quantized - latent).detach()
        e, q = (x.movedim(1, -1) for x in (latent, quantized.detach()))  # (B, h, w, C)
        norm_e, norm_q = (x.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6) for x in (e, q))
        unit_e, unit_q = e.detach() / norm_e, q / norm_q
        middle = nn.functional.normalize(unit_e + unit_q, dim=-1)
        rotated = e - 2 * (e * middle).sum(-1, keepdim=True) * middle + 2 * (e * unit_e).sum(-1, keepdim=True) * unit_q
        out: Tensor = rotated * (norm_q / norm_e)
        return out.movedim(-1, 1)


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all processes; the tensor itself when there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_gather(vectors: Tensor) -> Tensor:
    """Rows of all processes in rank order; every process must hold equally many."""
    if not (dist.is_available() and dist.is_initialized()):
        return vectors
    gathered = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, vectors.contiguous())
    return torch.cat(gathered)
