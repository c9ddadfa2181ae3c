"""Categorical head: a linear layer to the logits of V codes, cross-entropy, and Gumbel-max sampling."""

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genaim.core.layers import in_float32
from genaim.core.noise import Noise, gumbel
from genaim.heads.base import Head, HeadConfig, SamplingOptions, TokenSpec, guide


class CategoricalHeadConfig(HeadConfig):
    """A categorical head."""

    kind: Literal["categorical"] = "categorical"
    """Name in the registry of heads."""
    num_codes: int = 0
    """Codes V; filled in by the model."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target probability that is spread over all codes in training."""

    def fitted(self, width: int, tokens: TokenSpec) -> Self:
        """The config with width and number of codes filled in."""
        if tokens.codebook_size is None:
            raise ValueError(
                "head 'categorical' predicts codes, but the tokenizer gives continuous tokens; use one of the heads "
                "'gaussian', 'mixture' and 'diffusion'."
            )
        return self.model_copy(update={"width": width, "num_codes": tokens.codebook_size})


class CategoricalHead(Head):
    """The head of VAR and of every model with discrete tokens."""

    config: CategoricalHeadConfig
    options: ClassVar[tuple[str, ...]] = ("temperature", "top_k", "top_p")
    float32_layers = ("linear",)
    measure = "probability"

    def __init__(self, config: CategoricalHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, config.num_codes)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Small logits: a truncated normal of variance 1 / (3 D), times 0.02, as VAR was trained."""
        nn.init.trunc_normal_(self.linear.weight, std=(1 / self.config.width / 3) ** 0.5)
        self.linear.weight *= 0.02
        nn.init.zeros_(self.linear.bias)

    def logits(self, features: Tensor) -> Tensor:
        """(..., D) to (..., V), in float32 or better: bf16 logits of large magnitude tie."""
        return in_float32(self.linear, features)

    def loss(self, features: Tensor, targets: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Cross-entropy of every token in nats, (...); labels are smoothed in training only."""
        logits, smoothing = self.logits(features), self.config.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none", label_smoothing=smoothing)
        return loss.view(targets.shape)

    def log_prob(self, features: Tensor, targets: Tensor) -> Tensor:
        """Exact log-probability of every token in nats, (...)."""
        return self.logits(features).log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)

    def sample(
        self,
        features: Tensor,
        options: SamplingOptions,
        *,
        uncond_features: Tensor | None = None,
        guidance_scale: Tensor | float = 1.0,
        noise: Noise,
    ) -> Tensor:
        """Draws codes: guidance on logits, then temperature, top-k, top-p, then Gumbel-max.

        Gumbel-max (the argmax of logits plus Gumbel noise) draws from the softmax, and rounding can change a draw only
        where the two best perturbed logits nearly tie.

        Returns:
            (B, n) int64.
        """
        self.check_options(options)
        uncond = None if uncond_features is None else self.logits(uncond_features)
        logits = guide(self.logits(features), uncond, guidance_scale)
        if options.temperature == 0:
            return logits.argmax(-1)
        logits = truncate(logits / options.temperature, options.top_k, options.top_p)
        return (logits + gumbel(noise.uniform(*logits.shape[1:]))).argmax(-1)


def truncate(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Sets the logits outside top-k, then outside top-p (Holtzman et al. 2020, arXiv 1904.09751), to -inf.

    Top-p keeps the smallest set of most likely codes whose probability reaches ``top_p``; the best code always stays.

    Args:
        logits: (..., V).
        top_k: Codes to keep, or None; at most V are kept.
        top_p: Probability to keep, or None.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        ordered[..., :1] = logits.amax(-1, keepdim=True)
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return logits
