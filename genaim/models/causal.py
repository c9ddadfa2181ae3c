"""Next-token prediction over any grid of tokens: AIM, GIVT, LlamaGen and MAR's causal variants as generators.

Order: raster, or any other path. Head: any (a mixture of discretised logistics over pixel patches is next-patch
generation; a diffusion head over latents is MAR's Table 1, "causal"). Tokenizer: any single grid.

Beside every token that is fed goes *the position to be predicted* next, so a model can follow any path. In training a
part of the sequences is known-first: a random free-form set of positions, whose tokens see each other, then the rest
along the path. So an image can be completed around any hole (AIM's prefix, with a prefix of any shape).

    element   0      1      2    ...        position ids  0 0 0 3 4   (three known tokens)
    token     class  t_0    t_1                           1 1 1 0 0
    predicts  t_0    t_1    t_2                           1 1 1 0 0
                                                          1 1 1 0 0
                                                          1 1 1 1 0
                                                          1 1 1 1 1
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.core.cache import KVCache
from genaim.core.conditioning import ClassEmbedding
from genaim.core.masks import StepMask, free_form
from genaim.core.noise import Noise
from genaim.core.order import ORDERS, SequenceOrder, known_first, prefix_steps
from genaim.core.positions import sincos_2d
from genaim.core.transformer import Transformer, TransformerConfig
from genaim.heads import AnyHeadConfig
from genaim.models.base import (
    GenerativeModel,
    GeneratorConfig,
    Loss,
    Predicted,
    State,
    empty_canvas,
    gather,
    make_head,
    make_token_embed,
    put,
)
from genaim.tokenizers import Tokenizer

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"depth": 6, "width": 160, "num_heads": 4},
    "small": {"depth": 8, "width": 384, "num_heads": 6},
    "base": {"depth": 24, "width": 768, "num_heads": 12},
    "large": {"depth": 32, "width": 1024, "num_heads": 16},
}


class CausalConfig(GeneratorConfig):
    """A causal transformer over a grid of tokens."""

    presets = PRESETS
    kind: Literal["causal"] = "causal"
    """Name in the registry of models."""
    preset: str | None = None
    """tiny, small, base or large; base and large have the blocks of MAR-B and MAR-L. Other keys override it."""
    order: Literal["raster", "spiral", "checkerboard", "fixed_random", "random_sequence"] = "raster"
    """Path over the grid; random_sequence is another one for every image."""
    head: AnyHeadConfig
    """Distribution of a token."""
    depth: int = Field(6, ge=1)
    """Number of blocks."""
    width: int = Field(160, ge=4)
    """Channels D, a multiple of 4 and of num_heads."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    conditioning: Literal["none", "adaln", "shared_adaln"] = "shared_adaln"
    """How the class reaches the blocks, besides being the first element."""
    known_first: float = Field(0.5, ge=0, le=1)
    """Share of training sequences that begin with a random free-form set of known tokens."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout after attention and MLP."""

    @model_validator(mode="after")
    def _check(self) -> "CausalConfig":
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of num_heads {self.num_heads}")
        return self

    def transformer(self) -> TransformerConfig:
        """The shared transformer's config."""
        return TransformerConfig(
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            norm="layernorm" if self.conditioning == "none" else "layernorm_no_affine",
            conditioning=self.conditioning,
            dropout=self.dropout,
            attention_backend=self.attention_backend,
            gradient_checkpointing=self.gradient_checkpointing,
        )


@dataclass
class CausalState(State):
    """Generation in progress."""

    condition: Tensor
    """Class embeddings, (B, D), or (2 B, D) with the null class behind."""
    cache: KVCache
    last: Tensor | None
    """Positions of the newest tokens, (B, 1); None before the first."""


class CausalGenerator(GenerativeModel):
    """Predicts the tokens of a grid one after the other."""

    guidance_schedule: ClassVar[str] = "constant"
    config: CausalConfig
    order: SequenceOrder

    def __init__(self, config: CausalConfig, tokenizer: Tokenizer) -> None:
        """Builds the model.

        Raises:
            ValueError: If the head cannot predict the tokenizer's tokens, or these are not one grid.
        """
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.freeze_tokenizer()
        height, width = tokenizer.grid
        self.order = ORDERS[config.order](height, width)
        trunk = config.transformer()
        self.class_embed = ClassEmbedding(config.num_classes, trunk.width, config.label_dropout)
        self.token_embed = make_token_embed(tokenizer, trunk.width)
        grid = sincos_2d(height, width, trunk.width)
        self.source_positions = nn.Parameter(0.5 * grid)
        self.target_positions = nn.Parameter(0.5 * grid.flip(1))  # told apart from the sources from the start
        self.transformer = Transformer(trunk)
        self.head = make_head(config.head, trunk.width, tokenizer)
        self.transformer.init_weights()

    def forward(
        self, tokens: Tensor, path: Tensor, num_known: Tensor, labels: Tensor, noise: Noise | None = None
    ) -> Tensor:
        """Features of all tokens along their paths, teacher-forced.

        Args:
            tokens: (B, N) int64 or (B, N, C), at their image positions.
            path: Positions in the order of prediction, (B, N) int64.
            num_known: How many tokens of each path are given beforehand, (B,) int64.
            labels: Classes, (B,) int64 in [0, num_classes].
            noise: Source of drop path in training.

        Returns:
            (B, N, D); entry j is for the token at ``path[:, j]``.
        """
        condition = self.class_embed(labels)
        inputs = self._embed(gather(tokens, path[:, :-1]), path[:, :-1])
        x = torch.cat([condition[:, None], inputs], dim=1) + self.target_positions[path]
        steps = prefix_steps(num_known.clamp_min(1), path.shape[1])
        return self._run(x, condition, mask=StepMask(steps, steps), noise=noise)

    def loss(self, tokens: Tensor, labels: Tensor, *, noise: Noise) -> Loss:
        """The head's loss of all tokens that are not known beforehand; in evaluation none is."""
        labels = self.class_embed.drop(labels, noise) if self.training else self.class_embed.or_null(labels)
        path = self.order.sequence(len(tokens), noise, tokens.device)
        known = torch.zeros(path.shape, dtype=torch.bool, device=path.device)
        if self.training and self.config.known_first > 0:
            chosen = noise.uniform(1) < self.config.known_first
            known = free_form(self.tokenizer.grid, noise) & chosen
            path = known_first(path, known)
        features = self(tokens, path, known.sum(1), labels, noise)
        losses = self.head.loss(features, gather(tokens, path), noise=noise)
        wanted = ~known.gather(1, path)
        return Loss((losses * wanted).sum(), wanted.sum().to(losses.dtype))

    def start(self, labels: Tensor, *, guided: bool) -> CausalState:
        """Begins generation; allocates the cache."""
        batch_size, condition = len(labels), self.class_embed.start(labels, guided)
        return CausalState(
            tokens=empty_canvas(batch_size, self.tokenizer, condition),
            guided=guided,
            condition=condition,
            cache=self.transformer.make_cache(len(condition), self.order.num_tokens),
            last=None,
        )

    def predict(self, state: State, positions: Tensor) -> Predicted:
        """Features for one position of every image, (B, 1, D)."""
        assert isinstance(state, CausalState)
        target = self.target_positions[positions.clamp_min(0)]
        if state.last is None:
            target = torch.cat([target, target]) if state.guided else target
            x = state.condition[:, None] + target
        else:
            x = self._embed(gather(state.tokens, state.last), state.last) + target
            x = torch.cat([x, x]) if state.guided else x
        features = self._run(x, state.condition, cache=state.cache)
        return Predicted.split(features, state.guided)

    def commit(self, state: State, positions: Tensor, tokens: Tensor) -> None:
        """Writes one token of every image."""
        assert isinstance(state, CausalState)
        state.tokens = put(state.tokens, positions, tokens)
        state.last = positions

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = self.token_embed(tokens) + self.source_positions[positions.clamp_min(0)]
        return out

    def _run(self, x: Tensor, condition: Tensor, **arguments: Any) -> Tensor:
        features: Tensor = self.transformer(
            x, condition=None if self.config.conditioning == "none" else condition, **arguments
        )
        return features
