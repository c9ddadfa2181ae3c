"""MAR: masked autoregressive generation (Li et al. 2024, https://arxiv.org/abs/2406.11838).

Order: random sets. Head: diffusion (or any other; categorical over VQ codes is MaskGIT-like). Tokenizer: any single
grid. An encoder sees the known tokens, a decoder fills the hidden positions with mask tokens; both start with buffer
tokens that carry the class. Follows github.com/LTH14/mar, models/mar.py; official checkpoints load through
`genaim.pretrained.mar`. Difference: the share of hidden tokens is drawn for every image, not once per batch, so that
the rows of a batch are independent.

Our training differs from the published one (util/misc.py, `MAR.initialize_weights`): there the diffusion head has no
weight decay and the mask token has, here it is the other way round (`make_optimizer` of `genaim.training.optimizer`).
There every linear layer starts Xavier-uniform with bias 0, and the class embedding with deviation 0.02. Here blocks and
class embedding start as VAR's (`Transformer.init_weights`), `token_embed` and `decoder_embed` with PyTorch's default.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.core.attention import check_backend
from genaim.core.conditioning import ClassEmbedding
from genaim.core.masks import NEVER, StepMask
from genaim.core.noise import Noise, ranks
from genaim.core.order import RandomOrder
from genaim.core.positions import sincos_2d
from genaim.core.transformer import Transformer, TransformerConfig
from genaim.heads import AnyHeadConfig, DiffusionHeadConfig
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
from genaim.tokenizers import Tokenizer


def _published(depth: int, width: int, heads: int, head_depth: int, head_width: int) -> dict[str, Any]:
    head = {"kind": "diffusion", "depth": head_depth, "hidden": head_width}
    return {"encoder_depth": depth, "decoder_depth": depth, "width": width, "num_heads": heads, "head": head}


PRESETS: dict[str, dict[str, Any]] = {
    "base": _published(12, 768, 12, 6, 1024),
    "large": _published(16, 1024, 16, 8, 1280),
    "huge": _published(20, 1280, 16, 12, 1536),
    "small": _published(6, 384, 6, 3, 512) | {"num_buffer": 16},
    "tiny": _published(3, 160, 4, 3, 192) | {"num_buffer": 8},
}
HIDDEN_SHARE = (0.7, 0.25)  # the share of hidden tokens is normal around 1 with this deviation, cut to [0.7, 1]


class MARConfig(GeneratorConfig):
    """A masked autoregressive model; the defaults are those of MAR-B."""

    presets = PRESETS
    kind: Literal["mar"] = "mar"
    """Name in the registry of models."""
    preset: str | None = None
    """base, large and huge are the published sizes; small and tiny fit smaller machines. Other keys override it."""
    head: AnyHeadConfig = DiffusionHeadConfig()
    """Distribution of a token."""
    encoder_depth: int = Field(12, ge=1)
    """Blocks over the known tokens."""
    decoder_depth: int = Field(12, ge=1)
    """Blocks over all positions."""
    width: int = Field(768, ge=1)
    """Channels D of both."""
    num_heads: int = Field(12, ge=1)
    """Attention heads of both; they divide the width."""
    num_buffer: int = Field(64, ge=1)
    """Elements that carry the class, before the tokens."""
    num_steps: int = Field(64, ge=1)
    """Steps of generation when none are asked for."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout after attention and MLP; MAR was trained with 0.1."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of attention weights; MAR was trained with 0.1; flex has none."""

    @model_validator(mode="after")
    def _check(self) -> "MARConfig":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide width {self.width}")
        check_backend(self.attention_backend, self.attention_dropout)
        return self

    def transformer(self, depth: int) -> TransformerConfig:
        """The shared transformer's config for encoder or decoder."""
        return TransformerConfig(
            width=self.width,
            depth=depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            attention_backend=self.attention_backend,
            gradient_checkpointing=self.gradient_checkpointing,
        )


@dataclass
class MARState(State):
    """Generation in progress."""

    condition: Tensor
    """Class embeddings, (B, D), or (2 B, D) with the null class behind."""
    prefix: Tensor | None
    """Elements of the low-resolution images, (B, M, D), or (2 B, M, D) with the null elements behind."""
    known: Tensor
    """Which tokens of the canvas are there, (B, N) bool."""


class MAR(GenerativeModel):
    """Predicts random sets of tokens from all tokens known so far."""

    guidance_schedule: ClassVar[GuidanceSchedule] = "linear_in_share"
    config: MARConfig
    order: RandomOrder

    def __init__(self, config: MARConfig, tokenizer: Tokenizer) -> None:
        """Builds the model.

        Raises:
            ValueError: If the head cannot predict the tokenizer's tokens, or these are not one grid.
        """
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.freeze_tokenizer()
        self.order = RandomOrder(*tokenizer.grid, num_steps=config.num_steps)
        width, tokens = config.width, tokenizer.num_tokens
        self.class_embed = ClassEmbedding(config.num_classes, width)
        self.low_res_prefix = make_low_res_prefix(config, width, tokenizer)
        self.token_embed = make_token_embed(tokenizer, width)
        self.token_norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder_positions = _positions(config.num_buffer + tokens, width)
        self.encoder = Transformer(config.transformer(config.encoder_depth))
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = _positions(1, width)
        self.decoder_positions = _positions(config.num_buffer + tokens, width)
        self.decoder = Transformer(config.transformer(config.decoder_depth))
        self.output_positions = _positions(tokens, width)
        self.head = make_head(config.head, width, tokenizer)
        self.encoder.init_weights()
        self.decoder.init_weights()
        if self.low_res_prefix is not None:  # tokens start with the positions of the pixels that they are to find
            for table in (self.encoder_positions, self.decoder_positions):
                table.data[config.num_buffer :] = sincos_2d(*tokenizer.grid, width)

    def encode_known(self, tokens: Tensor, known: Tensor, condition: Tensor, prefix: Tensor | None = None) -> Tensor:
        """The encoder over buffer, low-resolution image and known tokens.

        Args:
            tokens: (B, N) int64 or (B, N, C).
            known: (B, N) bool.
            condition: Class embeddings, (B, D).
            prefix: Elements of the low-resolution images, (B, M, D); M is 0 without them.

        Returns:
            (B, num_buffer + M + m, D), where m is the largest number of known tokens of an image; known tokens come in
            the order of their positions, and rows with fewer end with features that nothing may use.
        """
        buffer = self.config.num_buffer
        counts = known.sum(1).tolist()  # the one host synchronisation of a round
        positions = known_positions(known, max(counts))
        x = [condition[:, None] + self.encoder_positions[:buffer], *([] if prefix is None else [prefix])]
        x += [self.token_embed(gather(tokens, positions)) + self.encoder_positions[buffer:][positions]]
        mask = None if min(counts) == max(counts) else _padding_mask(positions, buffer + self.prefix_length)
        out: Tensor = self.encoder(self.token_norm(torch.cat(x, dim=1)), mask=mask)
        return out

    def decode_all(self, encoded: Tensor, known: Tensor) -> Tensor:
        """The decoder over all positions.

        Args:
            encoded: The result of `encode_known`.
            known: (B, N) bool.

        Returns:
            Features of every position, (B, N, D).
        """
        buffer = self.config.num_buffer
        front = buffer + self.prefix_length
        embedded = self.decoder_embed(encoded)
        everywhere = self.mask_token.to(embedded.dtype).expand(*known.shape, -1)
        x = put(everywhere, known_positions(known, encoded.shape[1] - front), embedded[:, front:])
        positions: Tensor = self.decoder_positions
        if self.low_res_prefix is not None:
            positions = torch.cat([positions[:buffer], self.low_res_prefix.positions, positions[buffer:]])
        x = torch.cat([embedded[:, :front], x], dim=1) + positions
        out: Tensor = self.decoder(x)[:, front:] + self.output_positions
        return out

    @property
    def measure(self) -> None:
        """None with any head: sets are drawn, and predicted as if their tokens were independent."""
        return None

    def loss(self, tokens: Tensor, labels: Tensor, *, noise: Noise, low_res: Tensor | None = None) -> Loss:
        """The head's loss of the hidden tokens; in evaluation they are drawn as in training."""
        labels, prefix = self.training_condition(labels, low_res, noise)
        known = ranks(noise.uniform(tokens.shape[1])) >= hidden_count(noise, tokens.shape[1])[:, None]
        features = self.decode_all(self.encode_known(tokens, known, self.class_embed(labels), prefix), known)
        losses = self.head.loss(features, tokens, noise=noise)
        hidden = ~known
        return Loss((losses * hidden).sum(), hidden.sum().to(losses.dtype))

    def start(
        self, labels: Tensor, *, guided: bool, given: Given | None = None, low_res: Tensor | None = None
    ) -> MARState:
        """Begins generation; given tokens are known from the first step."""
        batch_size, condition = len(labels), self.class_embed.start(labels, guided)
        nothing = torch.zeros(batch_size, self.order.num_tokens, dtype=torch.bool, device=labels.device)
        canvas = empty_canvas(batch_size, self.tokenizer, condition)
        return MARState(
            tokens=canvas if given is None else put_given(canvas, given),
            guided=guided,
            given=given,
            condition=condition,
            prefix=self.start_prefix(low_res, batch_size, guided),
            known=nothing if given is None else given.known,
        )

    def predict(self, state: State, positions: Tensor) -> Predicted:
        """Features at the positions of a step, (B, n, D)."""
        assert isinstance(state, MARState)
        twice = 2 if state.guided else 1
        tokens = state.tokens.repeat(twice, *[1] * (state.tokens.dim() - 1))
        known, positions = state.known.repeat(twice, 1), positions.repeat(twice, 1)
        features = self.decode_all(self.encode_known(tokens, known, state.condition, state.prefix), known)
        features = gather(features, positions)
        return Predicted.split(features, state.guided)

    def commit(self, state: State, positions: Tensor, tokens: Tensor) -> None:
        """Writes the tokens of a step."""
        assert isinstance(state, MARState)
        state.tokens = put(state.tokens, positions, tokens)
        state.known = put(state.known, positions, torch.ones_like(positions, dtype=torch.bool))


def hidden_count(noise: Noise, num_tokens: int) -> Tensor:
    """How many tokens of each image training hides, (B,) int64: a truncated normal share, rounded up."""
    least, deviation = HIDDEN_SHARE
    below = 0.5 * (1 + math.erf((least - 1) / deviation / math.sqrt(2)))
    quantile = below + noise.uniform(1)[:, 0] * (0.5 - below)
    share: Tensor = 1 + deviation * torch.special.ndtri(quantile)
    return (share.clamp(least, 1) * num_tokens).ceil().long()


def known_positions(known: Tensor, most: int) -> Tensor:
    """Positions of the known tokens in ascending order, (B, N) bool to (B, most) int64; shorter rows end with -1."""
    front = (~known).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    return torch.where(torch.arange(most, device=known.device) < known.sum(1, keepdim=True), front, -1)


def _padding_mask(positions: Tensor, buffer: int) -> StepMask:
    """Hides the elements of missing positions."""
    steps = torch.where(positions < 0, NEVER, 0)
    steps = torch.cat([steps.new_zeros(len(steps), buffer), steps], dim=1)
    return StepMask(torch.zeros_like(steps), steps)


def _positions(count: int, width: int) -> nn.Parameter:
    """Learned embeddings, initialised as published."""
    return nn.Parameter(nn.init.normal_(torch.empty(count, width), std=0.02))
