"""A ResNet-56 for CIFAR-10 (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2) as a feature extractor.

Published weights of this layout (keys conv1, bn1, layer{1,2,3}.{i}, linear; shortcuts of option A) load as they are. It
stands in for Inception where no Inception weights are at hand, and is small enough for a CPU.
"""

from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGE_SIZE = 32
BLOCKS = 9  # of each of three stages
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut that pads channels with zeros (option A)."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.padding = stride, (out_channels - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        out = out + F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out)


def _stage(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    rest = (_Block(out_channels, out_channels, 1) for _ in range(BLOCKS - 1))
    return nn.Sequential(_Block(channels, out_channels, stride), *rest)


class CifarResNet(nn.Module):
    """Images of any size to 64 features, or 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1)
        self.layer2 = _stage(16, 32, 2)
        self.layer3 = _stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features of images (B, 3, H, W) in [-1, 1], resized to 32x32, (B, 64)."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x = F.relu(self.bn1(self.conv1(((images + 1) / 2 - mean) / std)))
        x = self.layer3(self.layer2(self.layer1(x)))
        pooled: Tensor = x.mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, 10)."""
        out: Tensor = self.linear(self.features(images))
        return out


def load_cifar_resnet(path: Path) -> CifarResNet:
    """The extractor with the weights of a safetensors file, in evaluation mode.

    Raises:
        ValueError: If they are of another model.
    """
    model = CifarResNet()
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError):
        raise ValueError(
            f"'{path}' does not hold a CIFAR-10 ResNet-56; genaim.evaluation.cifar tells the layout."
        ) from None
    return model.eval()
