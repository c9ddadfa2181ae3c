"""The convolutional encoder and decoder of latent image models (Esser et al. 2021, https://arxiv.org/abs/2012.09841).

The variant that VAR and MAR publish: GroupNorm of 32 groups, SiLU, strided convolution down, nearest and convolution
up, single-head attention at the lowest resolution only (of MAR's decoder not even there). Resolution levels are counted
from the image downwards in both.
"""

import itertools
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from genaim.config import Config
from genaim.core.inference import ReadyModule


class AutoencoderConfig(Config):
    """Shape of an encoder and its decoder."""

    channels: int = Field(160, ge=1)
    """Channels at full resolution; a multiple of `norm_groups`."""
    channel_multipliers: tuple[PositiveInt, ...] = Field((1, 1, 2, 2, 4), min_length=1)
    """Factor of the channels at each level; each level after the first halves the side."""
    num_res_blocks: int = Field(2, ge=1)
    """Residual blocks of an encoder level; a decoder level has one more."""
    latent_channels: int = Field(32, ge=1)
    """Channels C of the latent."""
    norm_groups: int = Field(32, ge=1)
    """Groups of every GroupNorm."""
    decoder_attention: bool = True
    """Attention after the decoder's blocks at the lowest resolution too, as in VAR; MAR has it in the encoder only."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout inside residual blocks."""

    @model_validator(mode="after")
    def _check(self) -> "AutoencoderConfig":
        if self.channels % self.norm_groups:
            raise ValueError(f"channels {self.channels} must be a multiple of norm_groups {self.norm_groups}")
        return self

    @property
    def downsampling(self) -> int:
        """Side of the image over side of the latent."""
        return int(2 ** (len(self.channel_multipliers) - 1))


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut."""

    def __init__(self, config: AutoencoderConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm1 = nn.GroupNorm(config.norm_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(config.norm_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) to (B, out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = F.dropout(F.silu(self.norm2(hidden)), self.dropout, self.training)
        out: Tensor = self.shortcut(x) + self.conv2(hidden)
        return out


class SpatialAttention(nn.Module):
    """Single-head attention over the positions of a feature map."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to (B, c, h, w)."""
        height, width = x.shape[-2:]
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, h * w, c)
        out = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = x + self.proj(out.squeeze(1).mT.unflatten(-1, (height, width)))
        return result


class Downsample(nn.Module):
    """Halves the side: zero padding at right and bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to (B, c, h / 2, w / 2)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles the side: nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to (B, c, 2 h, 2 w)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class PhaseUpsample(ReadyModule):
    """`Upsample` for inference with 4/9 of its products: pixels that came from one neighbour share one weight.

    Each of the four phases of the enlarged grid is a 2x2 convolution of the small one: in a row of repeated pixels
    aabbcc the kernel (k1, k2, k3) sees a b b or a a b, which is (k1) a + (k2 + k3) b or (k1 + k2) a + (k3) b.
    """

    bias: Tensor

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        weight, bias = upsample.conv.weight.detach(), upsample.conv.bias
        assert bias is not None
        first, middle, last = weight.unbind(-2)  # rows
        rows = (torch.stack([first, middle + last], -2), torch.stack([first + middle, last], -2))
        for row, kernel in enumerate(rows):
            first, middle, last = kernel.unbind(-1)
            columns = (torch.stack([first, middle + last], -1), torch.stack([first + middle, last], -1))
            for column, phase in enumerate(columns):
                phase = phase.contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"weight{row}{column}", phase, persistent=False)
        self.register_buffer("bias", bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to (B, c, 2 h, 2 w)."""
        height, width = x.shape[-2:]
        padded, phases = F.pad(x, (1, 1, 1, 1)), []
        for row, column in itertools.product(range(2), repeat=2):
            seen = padded[..., row : row + height + 1, column : column + width + 1]
            phases.append(F.conv2d(seen, getattr(self, f"weight{row}{column}"), self.bias))
        shape = (len(x), phases[0].shape[1], 2 * height, 2 * width)
        out = torch.empty(shape, dtype=phases[0].dtype, device=x.device, memory_format=torch.channels_last)
        for index, phase in enumerate(phases):
            out[..., index // 2 :: 2, index % 2 :: 2] = phase
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, with attention after each where wanted, and a change of resolution."""

    def __init__(
        self, config: AutoencoderConfig, channels: list[int], attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.blocks = nn.ModuleList(ResBlock(config, i, o) for i, o in pairs)
        self.attentions = nn.ModuleList(SpatialAttention(config, o) for _, o in pairs if attention)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels[0], h, w) to (B, channels[-1], h', w')."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


class Middle(nn.Sequential):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__(
            ResBlock(config, channels, channels),
            SpatialAttention(config, channels),
            ResBlock(config, channels, channels),
        )


class Encoder(nn.Module):
    """Images (B, 3, H, W) to features (B, out_channels, H / f, W / f)."""

    def __init__(self, config: AutoencoderConfig, out_channels: int | None = None) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        before = config.channels
        for i, width in enumerate(widths):
            resample = None if i == last else Downsample(width)
            self.levels.append(Level(config, [before] + [width] * config.num_res_blocks, i == last, resample))
            before = width
        self.middle = Middle(config, before)
        self.norm_out = nn.GroupNorm(config.norm_groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, out_channels or config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, out_channels, H / f, W / f)."""
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.middle(x))))
        return out


class Decoder(nn.Module):
    """Latents (B, C, h, w) to images (B, 3, f h, f w), not clamped."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        before = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, before, 3, padding=1)
        self.middle = Middle(config, before)
        levels: list[nn.Module] = []
        for i, width in reversed(list(enumerate(widths))):
            resample = Upsample(width) if i > 0 else None
            attention = config.decoder_attention and i == last
            levels.append(Level(config, [before] + [width] * (config.num_res_blocks + 1), attention, resample))
            before = width
        self.levels = nn.ModuleList(reversed(levels))  # counted from the image, as in the encoder
        self.norm_out = nn.GroupNorm(config.norm_groups, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, f h, f w)."""
        x = self.middle(self.conv_in(latents))
        for level in reversed(self.levels):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out

    @property
    def last_layer(self) -> Tensor:
        """The last weight, against which adversarial and reconstruction gradients are balanced."""
        return self.conv_out.weight
