"""AIM: image encoders pre-trained to predict the next patch (El-Nouby et al. 2024, https://arxiv.org/abs/2401.08541).

Version 2 (Fini et al. 2024, https://arxiv.org/abs/2411.14402) has RMSNorm and SwiGLU. Features follow
github.com/apple/ml-aim, whose checkpoints load through `genaim.pretrained.aim`; that repository has no pre-training, so
the objective follows the paper (sections 3 and 4):

1. The first S patches of an image, S uniform in [1, N - 1], see each other; each later one sees those before it.
2. Every patch predicts the one behind it, as pixels normalised by their own mean and variance.
3. The squared error counts outside the prefix.

    S = 3    patch      0 1 2 3 4        0   1 1 1 0 0
             predicts   1 2 3 4 -        1   1 1 1 0 0
             counts         x x          2   1 1 1 0 0
                                         3   1 1 1 1 0
                                         4   1 1 1 1 1

Unlike `genaim.models.causal`, which generates, a patch is not told the position that it predicts: it is always the next
one of the order. What the paper leaves open is chosen here: the mean over all counted patches of a batch, the positions
of the predicting patches in the head, and for version 2, which is published with text, the objective of version 1.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.config import Config
from genaim.core.attention import check_backend
from genaim.core.layers import make_norm
from genaim.core.masks import StepMask
from genaim.core.noise import Noise
from genaim.core.order import ORDERS, SequenceOrder, prefix_steps
from genaim.core.positions import sincos_2d
from genaim.core.transformer import Transformer, TransformerConfig
from genaim.heads.mlp import ResidualMLP
from genaim.models.base import Loss, with_preset
from genaim.models.encoder import Encoder, Layers, block_numbers
from genaim.tokenizers.patches import images_to_patches

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in [0, 1]
TARGET_EPS = 1e-6  # of the targets' variance, as in MAE

_PUBLISHED: dict[str, Any] = {"image_size": 224, "patch_size": 14, "pixels": "imagenet"}
_SECOND: dict[str, Any] = {**_PUBLISHED, "version": 2, "positions": "learned", "depth": 24}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"depth": 6, "width": 160, "num_heads": 4, "head_depth": 2, "head_width": 160},
    "small": {"depth": 8, "width": 384, "num_heads": 6, "head_depth": 4, "head_width": 384},
    "0.6B": {**_PUBLISHED, "depth": 24, "width": 1536, "num_heads": 12},
    "1B": {**_PUBLISHED, "depth": 24, "width": 2048, "num_heads": 16},
    "3B": {**_PUBLISHED, "depth": 24, "width": 3072, "num_heads": 24},
    "7B": {**_PUBLISHED, "depth": 32, "width": 4096, "num_heads": 32},
    "v2-large": {**_SECOND, "width": 1024, "num_heads": 8, "mlp_hidden": 2816},
    "v2-huge": {**_SECOND, "width": 1536, "num_heads": 12, "mlp_hidden": 4096},
    "v2-1B": {**_SECOND, "width": 2048, "num_heads": 16, "mlp_hidden": 5632},
    "v2-3B": {**_SECOND, "width": 3072, "num_heads": 24, "mlp_hidden": 8192},
}


class AIMConfig(Config):
    """An image encoder."""

    kind: Literal["aim"] = "aim"
    """Name in the registry of encoders."""
    preset: str | None = None
    """0.6B to 7B and v2-large to v2-3B are the published sizes; small and tiny fit smaller machines. Other keys
    override it."""
    version: Literal[1, 2] = 1
    """1: LayerNorm and GELU; 2: RMSNorm and SwiGLU."""
    image_size: int = Field(224, ge=1)
    """Side of the images that it is pre-trained on, and that learned positions fit."""
    patch_size: int = Field(14, ge=1)
    """Side of a patch, in pixels."""
    pixels: Literal["symmetric", "imagenet"] = "symmetric"
    """What the network sees: pixels in [-1, 1], or with ImageNet's mean and deviation, as the official weights need."""
    depth: int = Field(24, ge=1)
    """Number of blocks."""
    width: int = Field(1536, ge=4)
    """Channels D."""
    num_heads: int = Field(12, ge=1)
    """Attention heads."""
    mlp_hidden: int | None = Field(None, ge=1)
    """Hidden width of the MLP; null is 4 x width."""
    positions: Literal["sincos", "learned"] = "sincos"
    """sincos takes images of any size in whole patches; learned is a table for image_size."""
    feature_layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Blocks whose outputs are averaged as features, from 0 or negative from the end; null takes the last six in
    version 1, and in version 2 the final norm's output."""
    order: Literal["raster", "spiral", "checkerboard", "fixed_random"] = "raster"
    """Order of the patches in pre-training."""
    head_depth: int | None = Field(12, ge=1)
    """Blocks of the head that predicts pixels; null has no head, and cannot be pre-trained."""
    head_width: int = Field(2048, ge=1)
    """Channels of these blocks."""
    attention_backend: str = "sdpa"
    """sdpa runs everywhere; flex and xformers are for CUDA."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass to save memory."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:
        return with_preset(data, PRESETS)

    @model_validator(mode="after")
    def _check(self) -> "AIMConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}")
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of num_heads {self.num_heads}")
        if self.head_depth is not None and self.num_tokens < 2:
            raise ValueError(f"pre-training needs two patches or more; patch_size {self.patch_size} leaves one")
        for layer in self.feature_layers or ():
            if not -self.depth <= layer < self.depth:
                raise ValueError(f"feature_layers has {layer}, but depth is {self.depth}")
        check_backend(self.attention_backend)
        return self

    @property
    def num_tokens(self) -> int:
        """Patches N of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2

    def transformer(self) -> TransformerConfig:
        """The shared transformer's config."""
        first = self.version == 1
        return TransformerConfig(
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=4.0 if self.mlp_hidden is None else self.mlp_hidden / self.width,
            norm="layernorm" if first else "rmsnorm",
            norm_eps=1e-6 if first else 1e-5,
            activation="gelu" if first else "swiglu",
            qkv_bias="none",
            bias=False,
            attention_backend=self.attention_backend,
            gradient_checkpointing=self.gradient_checkpointing,
        )


class PatchEmbed(nn.Module):
    """A linear map of every patch, and a norm."""

    def __init__(self, config: AIMConfig) -> None:
        super().__init__()
        trunk = config.transformer()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.norm = make_norm(trunk.norm, trunk.width, trunk.norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, D), row-major."""
        out: Tensor = self.norm(self.proj(images).flatten(2).mT)
        return out


class AIM(Encoder):
    """A vision transformer without class token, and the head that pre-trains it."""

    config: AIMConfig
    pixel_head: ResidualMLP | None

    def __init__(self, config: AIMConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size, self.num_tokens = config.image_size, config.num_tokens
        side = config.image_size // config.patch_size
        self.order: SequenceOrder = ORDERS[config.order](side, side)
        self.patch_embed = PatchEmbed(config)
        if config.positions == "learned":
            self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(side**2, config.width), std=0.02))
        else:
            self.register_buffer("positions", sincos_2d(side, side, config.width), persistent=False)
        self.transformer = Transformer(config.transformer())
        self.transformer.init_weights()
        self.pixel_head = None
        if config.head_depth is not None:
            pixels = 3 * config.patch_size**2
            self.pixel_head = ResidualMLP(config.width, config.head_width, config.head_depth, pixels, bias=False)

    # Features

    def embed(self, images: Tensor) -> Tensor:
        """What the blocks are fed: patches and their positions, (B, 3, H, W) in [-1, 1] to (B, N, D).

        Raises:
            ValueError: If the images are not whole patches, or learned positions do not fit them.
        """
        c, (height, width) = self.config, images.shape[-2:]
        if images.dim() != 4 or images.shape[1] != 3 or height % c.patch_size or width % c.patch_size:
            raise ValueError(
                f"AIM takes images (B, 3, H, W) in whole patches of {c.patch_size} pixels, not {tuple(images.shape)}; "
                "resize them."
            )
        x: Tensor = self.patch_embed(self._normalized(images))
        return x + self._positions_of(height, width).to(x)

    def _positions_of(self, height: int, width: int) -> Tensor:
        c = self.config
        if (height, width) == (c.image_size, c.image_size):
            return self.positions
        if c.positions == "learned":
            raise ValueError(
                f"learned positions fit images of {c.image_size}x{c.image_size} pixels, not {height}x{width}; resize "
                "them, or use positions=sincos."
            )
        return sincos_2d(height // c.patch_size, width // c.patch_size, c.width)

    def _normalized(self, images: Tensor) -> Tensor:
        if self.config.pixels == "symmetric":
            return images
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ((images + 1) / 2 - mean) / std

    def hidden_states(self, images: Tensor, *, steps: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the output of every block in turn, (B, N, D); arguments are those of `features`."""
        mask = None if steps is None else StepMask(steps, steps)
        return self.transformer.hidden_states(self.embed(images), mask=mask)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.transformer.final_norm(hidden)

    def layers(self, layer: Layers | None) -> list[int]:
        depth = self.config.depth
        if layer is None:
            default = "norm" if self.config.version == 2 else f"last{min(6, depth)}"
            layer = default if self.config.feature_layers is None else self.config.feature_layers
        return block_numbers(layer, depth)

    # Pre-training

    def predict(self, images: Tensor, prefix_length: Tensor) -> Tensor:
        """Normalised pixels of every patch but the first of the order, each from those before it.

        Args:
            images: (B, 3, image_size, image_size) in [-1, 1].
            prefix_length: Patches of each image that see each other, (B,) int64 in [1, N - 1].

        Returns:
            (B, N - 1, 3 p p); entry j is patch j + 1 of the order.

        Raises:
            ValueError: If the encoder has no head, or the images are of another size.
        """
        size = self.image_size
        if self.pixel_head is None:
            raise ValueError("this encoder has no pixel head; set head_depth to pre-train it.")
        if tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(f"AIM is pre-trained on images (B, 3, {size}, {size}), not {tuple(images.shape)}.")
        path = self.order.path().to(images.device)
        steps = prefix_steps(prefix_length, self.num_tokens)
        features = self.transformer(self.embed(images)[:, path], mask=StepMask(steps, steps))
        out: Tensor = self.pixel_head(features[:, :-1] + self.positions[path[:-1]])
        return out

    def loss(self, images: Tensor, *, noise: Noise) -> Loss:
        """Squared error per value of the patches outside a random prefix, normalised each by itself."""
        prefix_length = self.draw_prefix(noise).to(images.device)
        predicted = self.predict(images, prefix_length)
        target, _, _ = self._targets(images)
        errors = (predicted.to(target.dtype) - target[:, 1:]).square().mean(-1)  # (B, N - 1)
        counted = self._outside(prefix_length)[:, 1:]
        return Loss((errors * counted).sum(), counted.sum().to(errors.dtype))

    def show(self, images: Tensor, *, noise: Noise) -> Tensor:
        """Images with every patch outside a random prefix replaced by its prediction.

        A prediction is given the mean and variance of the true patch, which are not predicted.
        """
        prefix_length = self.draw_prefix(noise).to(images.device)
        predicted = self.predict(images, prefix_length)
        target, mean, deviation = self._targets(images)
        first = torch.cat([target[:, :1], predicted.to(target.dtype)], dim=1)
        patches = torch.where(self._outside(prefix_length)[..., None], first, target) * deviation + mean
        patches = patches[:, self.order.step_ids().to(images.device)]  # from the order to the image
        p = self.config.patch_size
        pixels = rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=self.image_size // p, p=p, q=p)
        return self._denormalized(pixels).clamp(-1, 1)

    def draw_prefix(self, noise: Noise) -> Tensor:
        """Lengths of random prefixes, (B,) int64, uniform in [1, N - 1]."""
        return 1 + (noise.uniform() * (self.num_tokens - 1)).long()

    def _outside(self, prefix_length: Tensor) -> Tensor:
        """True for elements of the sequence outside the prefix, (B, N)."""
        return torch.arange(self.num_tokens, device=prefix_length.device) >= prefix_length[:, None]

    def _targets(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised patches along the order, (B, N, 3 p p), and their mean and deviation, (B, N, 1)."""
        patches = images_to_patches(self._normalized(images), self.config.patch_size)[:, self.order.path()]
        mean = patches.mean(-1, keepdim=True)
        deviation = (patches.var(-1, keepdim=True) + TARGET_EPS).sqrt()
        return (patches - mean) / deviation, mean, deviation

    def _denormalized(self, pixels: Tensor) -> Tensor:
        if self.config.pixels == "symmetric":
            return pixels
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return 2 * (pixels * std + mean) - 1
