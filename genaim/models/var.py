"""VAR: next-scale prediction (Tian et al. 2024, https://arxiv.org/abs/2404.02905).

Order: scales. Head: categorical. Tokenizer: multi-scale VQ. The input of a scale is the latent of the scales before it,
resized to the scale's side. Follows github.com/FoundationVision/VAR, models/var.py; official checkpoints load through
`genaim.pretrained.var`. Differences: guidance is converted to our formula (the published 1.5 is 2.5 here, reached
linearly at the last scale), and label dropout acts in training only.

Our training differs from the published one (train.py, `VAR.init_weights`): there positions, scale embeddings and the
offsets of shared AdaLN (pos_1LC, lvl_embed, ada_gss) have no weight decay, here they have (`make_optimizer` of
`genaim.training.optimizer`), as the start has (pos_start) where the first scale is larger than 1 x 1. There the linear
map of the inputs (word_embed) starts as the blocks do, here `token_embed` starts with PyTorch's default.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.core.cache import KVCache
from genaim.core.conditioning import ClassEmbedding, with_prefix
from genaim.core.masks import StepMask
from genaim.core.noise import Noise
from genaim.core.order import ScaleOrder
from genaim.core.positions import ScalePositions
from genaim.core.transformer import Modulation, Transformer, TransformerConfig
from genaim.heads import CategoricalHead, CategoricalHeadConfig
from genaim.models.base import (
    GenerativeModel,
    GeneratorConfig,
    Given,
    GuidanceSchedule,
    Loss,
    Predicted,
    State,
    gather,
    make_low_res_prefix,
    put_given,
)
from genaim.tokenizers import MultiScaleVQ

PRESETS: dict[str, dict[str, Any]] = {
    **{f"d{depth}": {"depth": depth} for depth in (12, 16, 20, 24, 30)},
    "d36": {"depth": 36, "shared_adaln": True},  # 512 pixels
    "small": {"depth": 8, "width": 384, "num_heads": 6, "shared_adaln": True},
    "tiny": {"depth": 6, "width": 160, "num_heads": 4, "shared_adaln": True, "drop_path": 0.0},
}


class VARConfig(GeneratorConfig):
    """A VAR transformer. The published models follow from the depth alone."""

    presets = PRESETS
    kind: Literal["var"] = "var"
    """Name in the registry of models."""
    preset: str | None = None
    """d12 to d36 are the published sizes; small and tiny fit smaller machines. Other keys override it."""
    depth: int = Field(16, ge=1)
    """Number of blocks."""
    width: int | None = Field(None, ge=1)
    """Channels D; None is the published 64 x depth."""
    num_heads: int | None = Field(None, ge=1)
    """Attention heads; None is the depth."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Drop-path rate of the last block; None is the published 0.1 x depth / 24."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout after attention and MLP."""
    shared_adaln: bool = False
    """One AdaLN map for all blocks, with offsets per block (d36)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy."""
    coarse_share: float = Field(0.0, ge=0, lt=1)
    """Share of training images of which only the first scales are learned, which costs little: fine scales are most of
    the tokens and are memorised first. (The official code's progressive training grows the scales over the run.)"""
    coarse_scales: int = Field(1, ge=1)
    """Number of these scales."""
    code_temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Above 0, training draws the codes of an image anew each time it sees it, from softmax(-squared distance /
    code_temperature), but for those of the full side, which mend the rest: fewer images are learned by heart, and the
    model sees the deviations that it will meet in its own samples (Lee et al. 2022, arXiv 2203.01941, who draw them so
    for residual VQ). Distances are those of the tokenizer's codebook; its PSNR tells how much is too much."""

    @model_validator(mode="after")
    def _check(self) -> "VARConfig":
        width, heads = self.width or 64 * self.depth, self.num_heads or self.depth
        if width % heads:
            raise ValueError(f"num_heads {heads} must divide width {width}")
        if self.coarse_share > 0 and self.transformer().drop_path > 0:
            raise ValueError("coarse_share above 0 needs drop_path 0: drop path is drawn for whole batches")
        return self

    def transformer(self) -> TransformerConfig:
        """The shared transformer's config."""
        return TransformerConfig(
            width=self.width or 64 * self.depth,
            depth=self.depth,
            num_heads=self.num_heads or self.depth,
            mlp_ratio=self.mlp_ratio,
            norm="layernorm_no_affine",
            activation="gelu_tanh",
            qkv_bias="qv",
            qk_norm="l2",
            conditioning="shared_adaln" if self.shared_adaln else "adaln",
            drop_path=0.1 * self.depth / 24 if self.drop_path is None else self.drop_path,
            dropout=self.dropout,
            attention_backend=self.attention_backend,
            gradient_checkpointing=self.gradient_checkpointing,
        )


@dataclass
class VARState(State):
    """Generation in progress: cache and the latent of the scales so far."""

    condition: Tensor
    """Class embeddings, (B, D), or (2 B, D) with the null class behind."""
    modulation: Modulation
    """What AdaLN makes of them, at every scale the same."""
    cache: KVCache
    latent: Tensor
    """Sum of the scales committed so far, (B, C, h, w), in the format of the codebook."""
    target: Tensor | None
    """Latent of the given tokens, (B, C, h, w)."""
    as_given: Tensor
    """True while all tokens committed so far were the given ones, (B, 1) bool."""


class VAR(GenerativeModel):
    """Class-conditional or unconditional next-scale prediction."""

    guidance_schedule: ClassVar[GuidanceSchedule] = "linear_in_step"
    config: VARConfig
    order: ScaleOrder
    head: CategoricalHead
    tokenizer: MultiScaleVQ

    def __init__(self, config: VARConfig, tokenizer: MultiScaleVQ) -> None:
        """Builds the model.

        Raises:
            ValueError: If the tokenizer has no scales, or one.
        """
        super().__init__()
        if not isinstance(tokenizer, MultiScaleVQ):
            raise ValueError(
                f"the model 'var' needs a tokenizer of kind 'multiscale_vq', not '{tokenizer.config.kind}'; use one, "
                "or the model 'causal' or 'mar'."
            )
        if len(tokenizer.patch_nums) < 2:
            raise ValueError(
                f"the model 'var' predicts scale after scale, and the tokenizer has one, patch_nums = "
                f"{list(tokenizer.patch_nums)}; take more, or the model 'causal' or 'mar'."
            )
        self.config, self.tokenizer = config, tokenizer
        self.freeze_tokenizer()
        self.order = ScaleOrder(tokenizer.patch_nums)
        trunk = config.transformer()
        first = self.order.sizes[0]
        self.class_embed = ClassEmbedding(config.num_classes, trunk.width)
        self.low_res_prefix = make_low_res_prefix(config, trunk.width, tokenizer)
        self.start_embed = nn.Parameter(torch.randn(first, trunk.width) * (1 / trunk.width / 3) ** 0.5)
        self.positions = ScalePositions(self.order.step_ids(), trunk.width)
        self.token_embed = nn.Linear(tokenizer.latent_channels, trunk.width)
        self.transformer = Transformer(trunk)
        self.head = CategoricalHead(
            CategoricalHeadConfig(
                width=trunk.width, num_codes=tokenizer.codebook_size, label_smoothing=config.label_smoothing
            )
        )
        self.transformer.init_weights()
        self.head.init_weights()

    def forward(
        self, scale_inputs: Tensor, labels: Tensor, noise: Noise | None = None, prefix: Tensor | None = None
    ) -> Tensor:
        """Features of all positions, teacher-forced.

        Args:
            scale_inputs: `MultiScaleVQ.scale_inputs` of the tokens, (B, N - first, C).
            labels: Classes, (B,) int64 in [0, num_classes]; ``num_classes`` is null.
            noise: Source of drop path in training.
            prefix: Elements of the low-resolution images, (B, M, D).

        Returns:
            (B, N, D); position i is predicted from its own feature.
        """
        condition = self.class_embed(labels)
        x = torch.cat([self._first(condition), self.token_embed(scale_inputs)], dim=1)
        x = x + self.positions(0, x.shape[1])
        x, steps = with_prefix(prefix, x, self.positions.scale_of[: x.shape[1]])
        features: Tensor = self.transformer(x, mask=StepMask(steps, steps), condition=condition, noise=noise)
        return features[:, self.prefix_length :]

    @property
    def cached(self) -> str:
        """Latents if codes are drawn anew each time, else tokens."""
        return "latents" if self.config.code_temperature > 0 else "tokens"

    def encode_for_cache(self, images: Tensor) -> Tensor:
        """Tokens, (B, N) int64; to draw codes from, the latent that is quantised, (B, h w, C)."""
        if self.cached == "tokens":
            return super().encode_for_cache(images)
        self.tokenizer.check_images(images)
        return rearrange(self.tokenizer.encode_latent(images), "b c h w -> b (h w) c")

    def from_cache(self, stored: Tensor, noise: Noise) -> Tensor:
        """Tokens, (B, N) int64; drawn in training, the nearest in evaluation."""
        if not stored.is_floating_point():
            return stored
        latent = rearrange(stored, "b (h w) c -> b c h w", h=self.tokenizer.patch_nums[-1])
        temperature = self.config.code_temperature if self.training else 0.0
        return self.tokenizer.quantize(latent, temperature=temperature, noise=noise)

    def loss(self, tokens: Tensor, labels: Tensor, *, noise: Noise, low_res: Tensor | None = None) -> Loss:
        """Cross-entropy of all tokens in nats, with the parts of every scale."""
        labels, prefix = self.training_condition(labels, low_res, noise)
        if not self.training or self.config.coarse_share == 0:
            return self._loss(tokens, labels, prefix, noise)
        coarse = noise.uniform() < self.config.coarse_share
        ends = ((~coarse, self.order.num_tokens), (coarse, sum(self.order.sizes[: self.config.coarse_scales])))
        fine, rough = (self._loss_of(rows, tokens[:, :end], labels, prefix) for rows, end in ends)
        return fine + rough

    def _loss_of(self, rows: Tensor, tokens: Tensor, labels: Tensor, prefix: Tensor | None) -> Loss:
        """The loss of some rows. Without any, of the first with weight 0: all processes compute the same parts."""
        some = bool(rows.any())
        index = rows.nonzero().flatten() if some else torch.zeros(1, dtype=torch.int64, device=rows.device)
        return self._loss(tokens[index], labels[index], None if prefix is None else prefix[index], None, float(some))

    def _loss(
        self, tokens: Tensor, labels: Tensor, prefix: Tensor | None, noise: Noise | None, weight: float = 1.0
    ) -> Loss:
        with torch.no_grad():
            inputs = self.tokenizer.scale_inputs(tokens)[:, : tokens.shape[1] - self.order.sizes[0]]
        losses = weight * self.head.loss(self(inputs, labels, noise, prefix), tokens)  # (B, n)
        scales = losses.detach().split(self.order.sizes[: len(self.tokenizer.split(tokens))], dim=1)
        parts = {f"scale_{k + 1}": (s.sum(), s.new_full((), weight * s.numel())) for k, s in enumerate(scales)}
        return Loss(losses.sum(), losses.new_full((), weight * losses.numel()), parts)

    def log_prob(self, tokens: Tensor, labels: Tensor, *, noise: Noise, low_res: Tensor | None = None) -> Tensor:
        """Of the tokens, scale after scale: the pixels have none, since the tokenizer loses some of them."""
        labels, prefix = self.condition_of(labels, low_res)
        inputs = self.tokenizer.scale_inputs(tokens)[:, : tokens.shape[1] - self.order.sizes[0]]
        return self.head.log_prob(self(inputs, labels, prefix=prefix), tokens)

    def context(self, known: Tensor) -> Tensor:
        """None: every scale is fed whole, in its turn."""
        return torch.zeros_like(known)

    def start(
        self, labels: Tensor, *, guided: bool, given: Given | None = None, low_res: Tensor | None = None
    ) -> VARState:
        """Begins generation; allocates the cache, and feeds it the low-resolution images."""
        batch_size, tok = len(labels), self.tokenizer
        condition = self.class_embed.start(labels, guided)
        modulation = self.transformer.modulation(condition)
        prefix = self.start_prefix(low_res, batch_size, guided)
        cache = self.transformer.make_cache(len(condition), self.prefix_length + tok.num_tokens)
        if prefix is not None:
            self.transformer(prefix, condition=modulation, cache=cache)
        side = tok.patch_nums[-1]
        return VARState(
            tokens=torch.zeros(batch_size, tok.num_tokens, dtype=torch.int64, device=labels.device),
            guided=guided,
            given=given,
            condition=condition,
            modulation=modulation,
            cache=cache,
            latent=tok.codebook.weight.new_zeros(batch_size, tok.latent_channels, side, side),
            target=None if given is None else tok.tokens_to_latent(given.tokens),
            as_given=torch.ones(batch_size, 1, dtype=torch.bool, device=labels.device),
        )

    def predict(self, state: State, positions: Tensor) -> Predicted:
        """Features of one whole scale, (B, n, D)."""
        assert isinstance(state, VARState)
        start, size = state.cache.length - self.prefix_length, positions.shape[1]
        if start == 0:
            x = self._first(state.condition)
        else:
            side = self.tokenizer.patch_nums[self.order.starts.index(start)]
            pooled = self.tokenizer.to_side(state.latent, side).flatten(2).mT  # (B, n, C)
            x = self.token_embed(pooled)
            x = torch.cat([x, x]) if state.guided else x
        x = x + self.positions(start, start + size)
        features = self.transformer(x, condition=state.modulation, cache=state.cache)
        return Predicted.split(features, state.guided)

    def keep_known(self, state: State, positions: Tensor, tokens: Tensor) -> Tensor:
        """Puts the known region of the given image on the latent of this scale.

        A token codes what the scales before it leave over. Where one of them was sampled, the given token does not fit
        any more, and what is left over of the given latent is coded anew; so the known region comes out as it was
        whatever was drawn beside it, and no seam is left between the scales.
        """
        assert isinstance(state, VARState)
        if state.given is None or state.target is None:
            return tokens
        side = self.tokenizer.patch_nums[self._scale(state, positions)]
        anew = self.tokenizer.codebook.nearest(self.tokenizer.to_side(state.target - state.latent, side)).flatten(1)
        fitting = torch.where(state.as_given, gather(state.given.tokens, positions), anew)
        return put_given(tokens, Given(fitting, gather(state.given.known, positions)))

    def commit(self, state: State, positions: Tensor, tokens: Tensor) -> None:
        """Writes one scale's tokens and adds it to the latent."""
        assert isinstance(state, VARState)
        state.tokens.scatter_(1, positions, tokens)
        scale = self._scale(state, positions)
        side = self.tokenizer.patch_nums[scale]
        state.latent = state.latent + self.tokenizer.scale_latent(tokens.unflatten(1, (side, side)), scale)
        if state.given is not None:
            same = (tokens == gather(state.given.tokens, positions)).all(1, keepdim=True)
            state.as_given = state.as_given & same

    def _scale(self, state: VARState, positions: Tensor) -> int:
        """The scale of the positions that `predict` has appended last."""
        return self.order.starts.index(state.cache.length - self.prefix_length - positions.shape[1])

    def _first(self, condition: Tensor) -> Tensor:
        """Inputs of the first scale: the class and a learned start, (B, first, D)."""
        return condition[:, None] + self.start_embed
