"""Next-token prediction over any grid of tokens: AIM, GIVT, LlamaGen and MAR's causal variants as generators.

Order: raster, or any other path. Head: any (a mixture of discretised logistics over pixel patches is next-patch
generation; a diffusion head over latents is MAR's Table 1, "causal"). Tokenizer: any single grid.

Beside every token that is fed goes *the position to be predicted* next, so a model can follow any path. In training a
part of the sequences is known-first: a random free-form set of positions, whose tokens see each other, then the rest
along the path. So an image can be completed around any hole (AIM's prefix, with a prefix of any shape). The last known
token is the exception: it is fed with the first position to be predicted, so it sees all known ones, and is seen by the
elements behind it alone.

    element   0      1      2      3    4   step ids      0 0 0 3 4   (three known tokens, t_0 to t_2)
    token     class  t_0    t_1    t_2  t_3               1 1 1 0 0
    predicts  t_0    t_1    t_2    t_3  t_4               1 1 1 0 0
                                                          1 1 1 0 0
                                                          1 1 1 1 0
                                                          1 1 1 1 1
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.core.cache import KVCache
from genaim.core.conditioning import ClassEmbedding, with_prefix
from genaim.core.masks import NEVER, StepMask, free_form
from genaim.core.noise import Noise
from genaim.core.order import ORDERS, SequenceOrder, known_first, prefix_steps
from genaim.core.positions import sincos_2d
from genaim.core.transformer import Modulation, Transformer, TransformerConfig
from genaim.heads import AnyHeadConfig
from genaim.models.base import (
    GenerativeModel,
    GeneratorConfig,
    Given,
    GuidanceSchedule,
    Loss,
    Predicted,
    State,
    empty_canvas,
    gather,
    make_head,
    make_low_res_prefix,
    make_token_embed,
    put,
    put_given,
)
from genaim.models.encoder import Layers, block_numbers, combined
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
    """tiny, small, base or large, the last two as deep and wide as MAR-B and MAR-L. Other keys override it."""
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
    modulation: Modulation | None
    """What AdaLN makes of them, at every step the same; None without AdaLN."""
    cache: KVCache
    padding: Tensor | None
    """True for elements behind the prefix in the cache that only fill up a row, (B, m) bool; None where there are
    none."""
    last: Tensor
    """Positions of the newest tokens, (B, 1); -1 before the first, whose place the class has."""


class CausalGenerator(GenerativeModel):
    """Predicts the tokens of a grid one after the other."""

    guidance_schedule: ClassVar[GuidanceSchedule] = "constant"
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
        self.class_embed = ClassEmbedding(config.num_classes, trunk.width)
        self.low_res_prefix = make_low_res_prefix(config, trunk.width, tokenizer)
        self.token_embed = make_token_embed(tokenizer, trunk.width)
        grid = sincos_2d(height, width, trunk.width)
        self.source_positions = nn.Parameter(0.5 * grid)
        self.target_positions = nn.Parameter(0.5 * grid.flip(1))  # told apart from the sources from the start
        self.transformer = Transformer(trunk)
        self.head = make_head(config.head, trunk.width, tokenizer)
        self.transformer.init_weights()

    def forward(
        self,
        tokens: Tensor,
        path: Tensor,
        num_known: Tensor,
        labels: Tensor,
        noise: Noise | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Features of all tokens along their paths, teacher-forced.

        Args:
            tokens: (B, N) int64 or (B, N, C), at their image positions.
            path: Positions in the order of prediction, (B, N) int64.
            num_known: How many tokens of each path are given beforehand, (B,) int64.
            labels: Classes, (B,) int64 in [0, num_classes].
            noise: Source of drop path in training.
            prefix: Elements of the low-resolution images, (B, M, D).

        Returns:
            (B, N, D); entry j is for the token at ``path[:, j]``.
        """
        condition = self.class_embed(labels)
        x = self._elements(tokens, path, condition)
        x, steps = with_prefix(prefix, x, prefix_steps(num_known.clamp_min(1), path.shape[1]))
        mask, modulating = StepMask(steps, steps), self._modulating(condition)
        features: Tensor = self.transformer(x, condition=modulating, mask=mask, noise=noise)
        return features[:, self.prefix_length :]

    def loss(self, tokens: Tensor, labels: Tensor, *, noise: Noise, low_res: Tensor | None = None) -> Loss:
        """The head's loss of all tokens that are not known beforehand; in evaluation none is."""
        labels, prefix = self.training_condition(labels, low_res, noise)
        path = self.order.sequence(len(tokens), noise, tokens.device)
        known = torch.zeros(path.shape, dtype=torch.bool, device=path.device)
        if self.training and self.config.known_first > 0:
            chosen = noise.uniform(1) < self.config.known_first
            known = free_form(self.tokenizer.grid, noise) & chosen
            path = known_first(path, known)
        features = self(tokens, path, known.sum(1), labels, noise, prefix)
        losses = self.head.loss(features, gather(tokens, path), noise=noise)
        wanted = ~known.gather(1, path)
        return Loss((losses * wanted).sum(), wanted.sum().to(losses.dtype))

    def log_prob(self, tokens: Tensor, labels: Tensor, *, noise: Noise, low_res: Tensor | None = None) -> Tensor:
        """Along the model's own path, with no token known beforehand."""
        labels, prefix = self.condition_of(labels, low_res)
        path = self.order.sequence(len(tokens), noise, tokens.device)
        features = self(tokens, path, path.new_zeros(len(path)), labels, prefix=prefix)
        found = self.head.log_prob(features, gather(tokens, path))
        return torch.empty_like(found).scatter_(1, path, found)

    # Features

    def hidden_states(self, images: Tensor) -> Iterator[Tensor]:
        """Yields the output of every block in turn, with all tokens of images given and the class not.

        Where training had known-first sequences, the elements see each other, as known tokens do; else each sees those
        before it.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Yields:
            (B, N, D); the class and all tokens but the last of the path, of which nothing is predicted.

        Raises:
            ValueError: If the model takes low-resolution images.
        """
        if self.low_res_prefix is not None:
            raise ValueError("the model enlarges pictures, and gives no features; use one that draws them by itself.")
        with torch.no_grad():
            tokens = self.tokenizer.encode(images)
        path = self.order.path().to(tokens.device).expand(len(tokens), -1)
        condition = self.class_embed(self.class_embed.null(len(tokens)))
        known = path.new_full((1,), path.shape[1] if self.config.known_first > 0 else 1)
        steps = prefix_steps(known, path.shape[1])[0]
        x = self._elements(tokens, path, condition)
        yield from self.transformer.hidden_states(x, mask=StepMask(steps, steps), condition=self._modulating(condition))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm behind the last block, without a class, (B, N, D) to the same."""
        condition = self.class_embed(self.class_embed.null(len(hidden)))
        return self.transformer.final_norm(hidden, self._modulating(condition))

    def layers(self, layer: Layers | None) -> list[int]:
        """Numbers from 0 of the blocks that a choice of `features` names; none for the final norm.

        Raises:
            ValueError: If there is no such block.
        """
        return block_numbers("norm" if layer is None else layer, self.config.depth)

    def features(self, images: Tensor, *, layer: Layers | None = None, pool: Literal["mean"] | None = None) -> Tensor:
        """Features of images as an encoder's: see `Encoder.features`; None takes those after the final norm.

        Returns:
            (B, N, D), or (B, D) when pooled.
        """
        return combined(self.hidden_states(images), self.layers(layer), self.final_norm, pool)

    # Generation

    def context(self, known: Tensor) -> Tensor:
        """All given tokens where training had known-first sequences; else none: they are seen in their turn."""
        return known if self.config.known_first > 0 else torch.zeros_like(known)

    def start(
        self, labels: Tensor, *, guided: bool, given: Given | None = None, low_res: Tensor | None = None
    ) -> CausalState:
        """Begins generation; allocates the cache and fills it with what is seen beforehand.

        That is the low-resolution images, then the given tokens.
        """
        batch_size, condition = len(labels), self.class_embed.start(labels, guided)
        prefix = self.start_prefix(low_res, batch_size, guided)
        canvas = empty_canvas(batch_size, self.tokenizer, condition)
        known = canvas.new_zeros(batch_size, self.order.num_tokens, dtype=torch.bool)
        if given is not None:
            known = self.context(given.known)
            canvas = put_given(canvas, Given(given.tokens, known))
        counts = known.sum(1)
        first, rest = int(counts.max()), self.order.num_tokens - int(counts.min())
        state = CausalState(
            tokens=canvas,
            guided=guided,
            given=given,
            condition=condition,
            modulation=None if self.config.conditioning == "none" else self.transformer.modulation(condition),
            cache=self.transformer.make_cache(len(condition), self.prefix_length + first + rest),
            padding=None,
            last=counts.new_full((batch_size, 1), -1),
        )
        if prefix is not None:
            self.transformer(prefix, condition=state.modulation, cache=state.cache)
        if first:
            self._prefill(state, known)
        return state

    def _prefill(self, state: CausalState, known: Tensor) -> None:
        """Feeds the elements before the last known token, which see each other; `predict` feeds that token.

        Rows with fewer known tokens begin with padding, which nothing else may attend to.
        """
        counts = known.sum(1, keepdim=True)
        width = int(counts.max())
        path = known_first(self.order.path().to(known.device).expand(len(known), -1), known)
        index = torch.arange(width, device=known.device) - (width - counts)  # (B, m) on the path; negative is padding
        target = path.gather(1, index.clamp_min(0))
        source = torch.where(index > 0, path.gather(1, (index - 1).clamp_min(0)), -1)
        if bool((index < 0).any()):
            state.padding = index < 0
        self._feed(state, source, target)
        state.last = torch.where(counts > 0, target[:, -1:], -1)

    def predict(self, state: State, positions: Tensor) -> Predicted:
        """Features for one position of every image, (B, 1, D)."""
        assert isinstance(state, CausalState)
        return Predicted.split(self._feed(state, state.last, positions), state.guided)

    def commit(self, state: State, positions: Tensor, tokens: Tensor) -> None:
        """Writes one token of every image."""
        assert isinstance(state, CausalState)
        state.tokens = put(state.tokens, positions, tokens)
        state.last = positions

    def _feed(self, state: CausalState, source: Tensor, target: Tensor) -> Tensor:
        """Appends elements to the cache: the tokens at ``source`` (B, n), -1 is the class, each with its target."""
        twice, size = 2 if state.guided else 1, source.shape[1]
        tokens = self._embed(gather(state.tokens, source), source).repeat(twice, 1, 1)
        x = torch.where((source < 0).repeat(twice, 1)[..., None], state.condition[:, None].to(tokens.dtype), tokens)
        x = x + self.target_positions[target.clamp_min(0)].repeat(twice, 1, 1)
        mask = None
        if state.padding is not None:
            # padding sees everything, since attention over nothing is not a number
            front, total = self.prefix_length, state.cache.length + size
            steps = F.pad(torch.where(state.padding, NEVER, 0), (front, total - front - state.padding.shape[1]))
            steps = steps.repeat(twice, 1)
            mask = StepMask(steps[:, -size:], steps)
        features: Tensor = self.transformer(x, condition=state.modulation, mask=mask, cache=state.cache)
        return features

    def _elements(self, tokens: Tensor, path: Tensor, condition: Tensor) -> Tensor:
        """The class and all tokens but the last along a path, each with the position to be predicted, (B, N, D)."""
        inputs = self._embed(gather(tokens, path[:, :-1]), path[:, :-1])
        return torch.cat([condition[:, None], inputs], dim=1) + self.target_positions[path]

    def _modulating(self, condition: Tensor) -> Tensor | None:
        """What reaches the blocks of the class."""
        return None if self.config.conditioning == "none" else condition

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = self.token_embed(tokens) + self.source_positions[positions.clamp_min(0)]
        return out
