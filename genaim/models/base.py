"""What a generative model is: an order, a head and a tokenizer around the shared transformer.

Samplers drive `start`, `predict` and `commit`; training calls `loss`. See `samplers/decode.py` for the loop.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.config import Config, nearest, validate
from genaim.core.attention import check_backend
from genaim.core.conditioning import ClassEmbedding, LowResPrefix
from genaim.core.noise import Noise
from genaim.core.order import Order
from genaim.heads import HEADS, Head, HeadConfig, Measure, SamplingOptions, TokenSpec
from genaim.tokenizers import Tokenizer

GuidanceSchedule = Literal["constant", "linear_in_step", "linear_in_share"]
"""How the guidance scale of a step is made of the asked one; `samplers.guidance` has the formulas."""


class SamplingDefaults(SamplingOptions):
    """How a model is sampled when nothing else is asked for; stored with its weights."""

    guidance_scale: float = Field(1.0, allow_inf_nan=False)
    """Guidance at the end of its schedule; 1.0 is off."""
    guidance_schedule: GuidanceSchedule | None = None
    """None takes the one that models of this kind were published with."""
    num_steps: int | None = Field(None, ge=1)
    """Steps of generation, for orders that can choose them; None takes the order's own."""

    def options(self, **given: float | str | None) -> SamplingOptions:
        """The part that the head takes, with what is given in place of the defaults.

        None leaves a default; top_k 0 and top_p 1 switch it off.

        Raises:
            ValueError: If a value is out of its range.
        """
        wanted = {name: given.get(name) for name in SamplingOptions.model_fields}
        wanted = {name: getattr(self, name) if value is None else value for name, value in wanted.items()}
        wanted["top_k"] = wanted["top_k"] or None
        wanted["top_p"] = None if wanted["top_p"] == 1.0 else wanted["top_p"]
        return validate(SamplingOptions, wanted, "sampling options")


class GeneratorConfig(Config):
    """What every generative model is configured by; models add their own fields."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Keys of each preset."""
    num_classes: int = Field(0, ge=0)
    """Classes; 0 is an unconditional model."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, in order."""
    low_res: int | None = Field(None, ge=1)
    """Side of the low-resolution image that is given, for super-resolution; null is for models that take none."""
    low_res_patch: int = Field(2, ge=1)
    """Side of the patches of that image; each is an element before the tokens."""
    label_dropout: float = Field(0.1, ge=0, le=1)
    """Probability that training replaces the class, and the low-resolution image with it, by null, which guidance
    needs. Where there is such an image, so many rows more lose the class alone: pictures mostly come without one."""
    sampling: SamplingDefaults = SamplingDefaults()
    """How the model is sampled by default."""
    mlp_ratio: float = Field(4.0, gt=0, allow_inf_nan=False)
    """Hidden width of the transformer's MLP over its width."""
    attention_backend: str = "sdpa"
    """sdpa runs everywhere; flex and xformers are for CUDA."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass to save memory."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:
        return with_preset(data, cls.presets)

    @model_validator(mode="after")
    def _names_and_backend_fit(self) -> "GeneratorConfig":
        check_backend(self.attention_backend)
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names for num_classes {self.num_classes}")
        if self.low_res is not None and self.low_res % self.low_res_patch:
            raise ValueError(f"low_res_patch {self.low_res_patch} must divide low_res {self.low_res}")
        return self


def with_preset(data: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """A model's raw config with the keys of its preset filled in; other keys override them.

    Raises:
        ValueError: If there is no such preset.
    """
    if not isinstance(data, dict) or data.get("preset") is None:
        return data
    if data["preset"] not in presets:
        raise ValueError(f"unknown preset '{data['preset']}'; {nearest(str(data['preset']), presets)}")
    return {**presets[data["preset"]], **data}


Totals = dict[str, tuple[Tensor, Tensor]]
"""Sums and counts by name."""


def add_up(totals: Totals, more: Totals) -> None:
    """Adds sums and counts to totals, name by name; a new name starts its total."""
    for name, (total, count) in more.items():
        before = totals.get(name)
        totals[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


@dataclass
class Loss:
    """The training loss of a batch, as a sum and a count so that any number of processes can normalise it."""

    sum: Tensor
    """Sum over tokens, a scalar with gradient."""
    count: Tensor
    """Number of tokens, a scalar."""
    parts: Totals = field(default_factory=dict)
    """Sums and counts of parts to report, for example one per scale; no gradient."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """What the training task needs again after the step; no gradient."""

    def __add__(self, other: "Loss") -> "Loss":
        """The loss of both batches together."""
        parts = dict(self.parts)
        add_up(parts, other.parts)
        return Loss(self.sum + other.sum, self.count + other.count, parts, {**self.outputs, **other.outputs})


class Predicted(NamedTuple):
    """Features at the positions of a step."""

    features: Tensor
    """(B, n, D)."""
    uncond_features: Tensor | None
    """(B, n, D) under the null condition; None without guidance."""

    @classmethod
    def split(cls, features: Tensor, guided: bool) -> "Predicted":
        """Of features (B, n, D), or with guidance (2 B, n, D) whose second half is under the null condition."""
        cond, uncond = features.chunk(2) if guided else (features, None)
        return cls(cond, uncond)


class Given(NamedTuple):
    """Tokens that are given beforehand, to complete an image around them."""

    tokens: Tensor
    """Of the whole image, with something plausible in its holes, (B, N) int64 or (B, N, C). Only scales read the tokens
    that are not known: what they add to the latent of their surroundings belongs to it."""
    known: Tensor
    """True where a token is given, (B, N) bool."""


@dataclass
class State:
    """Generation in progress; each request has its own. Models extend it."""

    tokens: Tensor
    """Canvas of tokens, (B, N) int64 or (B, N, C)."""
    guided: bool
    """Whether rows under the null condition are computed too."""
    given: Given | None
    """What `keep_known` restores; None in generation from nothing."""


class GenerativeModel(nn.Module, ABC):
    """A generator with its frozen tokenizer."""

    guidance_schedule: ClassVar[GuidanceSchedule] = "constant"
    """Name of the published guidance schedule, in `samplers.guidance`."""
    prepared: torch.dtype | None = None
    """The number format that the weights are made ready for, by `samplers.prepare`; None of a model as it is loaded."""
    config: GeneratorConfig
    order: Order
    head: Head
    tokenizer: Tokenizer
    class_embed: ClassEmbedding
    low_res_prefix: LowResPrefix | None
    """Elements of the low-resolution image; None in models that take none."""

    @abstractmethod
    def loss(self, tokens: Tensor, labels: Tensor, *, noise: Noise, low_res: Tensor | None = None) -> Loss:
        """Teacher-forced loss of a batch.

        Args:
            tokens: (B, N) int64 or (B, N, C).
            labels: Classes, (B,) int64; -1 is none.
            noise: Source of label dropout, drop path and whatever the model draws.
            low_res: The images at low resolution, (B, 3, s, s) in [-1, 1], for models that take them.

        Raises:
            ValueError: If the model takes low-resolution images and gets none, or gets some and takes none.
        """

    @property
    def cached(self) -> str:
        """What `encode_for_cache` keeps of an image, by name."""
        return "tokens"

    def encode_for_cache(self, images: Tensor) -> Tensor:
        """What training keeps of images (B, 3, H, W) in [-1, 1], see `Tokenizer.encode_for_cache`."""
        return self.tokenizer.encode_for_cache(images)

    def from_cache(self, stored: Tensor, noise: Noise) -> Tensor:
        """Tokens of what `encode_for_cache` kept, (B, N) int64 or (B, N, C)."""
        return self.tokenizer.from_cache(stored, noise)

    @property
    def measure(self) -> Measure | None:
        """What `log_prob` is the logarithm of; None where the model has no exact one."""
        return self.head.measure

    def log_prob(self, tokens: Tensor, labels: Tensor, *, noise: Noise, low_res: Tensor | None = None) -> Tensor:
        """Exact log-probability, or log-density, of every token given those before it in the order.

        Args:
            tokens: (B, N) int64 or (B, N, C).
            labels: Classes, (B,) int64; -1 is none.
            noise: Source of the paths of models that draw them.
            low_res: The images at low resolution, (B, 3, s, s) in [-1, 1], for models that take them.

        Returns:
            Nats of the token at each position, (B, N).

        Raises:
            ValueError: If the model has none, or `low_res` is not what the model takes.
        """
        raise ValueError(f"{type(self).__name__} has no exact density; evaluate its samples instead.")

    @abstractmethod
    def start(
        self, labels: Tensor, *, guided: bool, given: Given | None = None, low_res: Tensor | None = None
    ) -> State:
        """Begins generation.

        Args:
            labels: Classes, (B,) int64; ``num_classes`` is the null class.
            guided: Whether `predict` computes features under the null condition too.
            given: Tokens to complete; None generates all.
            low_res: Images to enlarge, (B, 3, s, s) in [-1, 1], for models that take them.

        Raises:
            ValueError: If a label is out of range, or `low_res` is not what the model takes.
        """

    def training_condition(self, labels: Tensor, low_res: Tensor | None, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """Labels in [0, num_classes], (B,), and the elements of low-resolution images, (B, M, D), if the model has any.

        In training both are replaced by null together with probability `label_dropout`, which guidance needs, and with
        the same probability, drawn by itself, the class alone, which enlarging a picture without a class needs.
        """
        if not self.training:
            return self.condition_of(labels, low_res)
        prefix = self._checked_prefix(low_res, len(labels))
        labels = self.class_embed.or_null(labels)
        unlabelled = dropped = noise.uniform() < self.config.label_dropout
        if prefix is not None and self.config.num_classes:  # a draw that no other model makes
            unlabelled = dropped | (noise.uniform() < self.config.label_dropout)
        labels = torch.where(unlabelled, self.class_embed.num_classes, labels)
        return labels, None if prefix is None or low_res is None else prefix(low_res, dropped)

    def condition_of(self, labels: Tensor, low_res: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `training_condition` gives, with nothing replaced."""
        prefix = self._checked_prefix(low_res, len(labels))
        kept = torch.zeros_like(labels, dtype=torch.bool)
        labels = self.class_embed.or_null(labels)
        return labels, None if prefix is None or low_res is None else prefix(low_res, kept)

    def start_prefix(self, low_res: Tensor | None, count: int, guided: bool) -> Tensor | None:
        """Elements of low-resolution images to generate from, as `LowResPrefix.start`, if the model has any."""
        prefix = self._checked_prefix(low_res, count)
        return None if prefix is None or low_res is None else prefix.start(low_res, guided)

    def _checked_prefix(self, low_res: Tensor | None, count: int) -> LowResPrefix | None:
        prefix = self.low_res_prefix
        if prefix is None:
            if low_res is not None:
                raise ValueError("the model takes no low-resolution image; leave low_res out.")
        elif low_res is None:
            side = prefix.side
            raise ValueError(f"the model enlarges images of {side}x{side} pixels and got none; pass low_res.")
        else:
            prefix.check(low_res, count)
        return prefix

    @property
    def prefix_length(self) -> int:
        """Elements of the low-resolution image; 0 in models that take none."""
        return 0 if self.low_res_prefix is None else self.low_res_prefix.num_elements

    def context(self, known: Tensor) -> Tensor:
        """Which of the given tokens are seen from the first step on, (B, N) bool to the same.

        The others are predicted in their turn and replaced by `keep_known`, so that they are seen by later ones only.
        """
        return known

    @abstractmethod
    def predict(self, state: State, positions: Tensor) -> Predicted:
        """Features at positions (B, n); the only writer of the cache."""

    def keep_known(self, state: State, positions: Tensor, tokens: Tensor) -> Tensor:
        """Tokens (B, n) at positions (B, n), with the given ones in place of those that were drawn."""
        if state.given is None:
            return tokens
        given = Given(gather(state.given.tokens, positions), gather(state.given.known, positions))
        return put_given(tokens, given)

    @abstractmethod
    def commit(self, state: State, positions: Tensor, tokens: Tensor) -> None:
        """Puts tokens (B, n) at positions (B, n); the only writer of the canvas."""

    def state_dict_without_tokenizer(self) -> dict[str, Tensor]:
        """The trained weights; the tokenizer is stored in its own file."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("tokenizer.")}

    def freeze_tokenizer(self) -> None:
        """Excludes the tokenizer from training."""
        self.tokenizer.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "GenerativeModel":
        """Training mode for all but the tokenizer, which stays frozen.

        Raises:
            ValueError: If the model is prepared for sampling.
        """
        if mode and self.prepared is not None:
            raise ValueError("the model is made ready for sampling; load it anew to train it.")
        super().train(mode)
        self.tokenizer.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def make_head(config: HeadConfig, width: int, tokenizer: Tokenizer) -> Head:
    """The head of a config over features of ``width`` channels, for a tokenizer's tokens.

    Raises:
        ValueError: If the head cannot predict such tokens.
    """
    tokens = TokenSpec(tokenizer.codebook_size, tokenizer.token_channels, tokenizer.pixel_levels)
    build: Any = HEADS[config.kind][1]
    head: Head = build(config.fitted(width, tokens))
    return head


def make_low_res_prefix(config: GeneratorConfig, width: int, tokenizer: Tokenizer) -> LowResPrefix | None:
    """The elements of low-resolution images, in ``width`` channels, if the config asks for them.

    Raises:
        ValueError: If the tokenizer's images are not a whole multiple of theirs.
    """
    if config.low_res is None:
        return None
    if tokenizer.image_size % config.low_res or tokenizer.image_size == config.low_res:
        raise ValueError(
            f"low_res {config.low_res} must divide the {tokenizer.image_size} pixels of the tokenizer's images, and be "
            "less; change it."
        )
    return LowResPrefix(config.low_res, config.low_res_patch, width)


def make_token_embed(tokenizer: Tokenizer, width: int) -> nn.Module:
    """Tokens to ``width`` channels: a table of codes, or a linear layer."""
    if tokenizer.codebook_size is not None:
        return nn.Embedding(tokenizer.codebook_size, width)
    assert tokenizer.token_channels is not None
    return TokenLinear(tokenizer.token_channels, width)


class TokenLinear(nn.Linear):
    """A linear layer of continuous tokens, which stay float32 on the canvas when the weights are bfloat16."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) to (..., D), in the precision of the weights."""
        return super().forward(tokens.to(self.weight.dtype))


def empty_canvas(batch_size: int, tokenizer: Tokenizer, like: Tensor) -> Tensor:
    """Zero tokens, (B, N) int64 or (B, N, C), on the device of ``like`` and in its precision, but at least float32."""
    if tokenizer.codebook_size is not None:
        return torch.zeros(batch_size, tokenizer.num_tokens, dtype=torch.int64, device=like.device)
    assert tokenizer.token_channels is not None
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros(batch_size, tokenizer.num_tokens, tokenizer.token_channels, dtype=dtype, device=like.device)


def put_given(tokens: Tensor, given: Given) -> Tensor:
    """Tokens (B, n) or (B, n, C) with the known ones of ``given`` in their place."""
    known = given.known if tokens.dim() == 2 else given.known[..., None]
    return torch.where(known, given.tokens.to(tokens.dtype), tokens)


def gather(values: Tensor, positions: Tensor) -> Tensor:
    """Values (B, N) or (B, N, C) at positions (B, n); -1 reads position 0."""
    index = positions.clamp_min(0)
    return values.gather(1, index if values.dim() == 2 else index[..., None].expand(-1, -1, values.shape[-1]))


def put(values: Tensor, positions: Tensor, new: Tensor) -> Tensor:
    """A copy of values (B, N) or (B, N, C) with ``new`` (B, n) or (B, n, C) at positions (B, n); -1 writes nothing."""
    spare = torch.cat([values, values[:, :1]], dim=1)  # takes what is to be written nowhere
    index = torch.where(positions < 0, values.shape[1], positions)
    index = index if values.dim() == 2 else index[..., None].expand(-1, -1, values.shape[-1])
    return spare.scatter(1, index, new.to(values.dtype))[:, :-1]
