"""Ten classes that a small classifier can tell apart, as IDX files too, and a generator of noise in their shape."""

import struct
from pathlib import Path

import torch
from torch import Tensor

from genaim.models import VAR
from tests.tiny import make_tokenizer, make_var


def bars(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Class c is a bar at one of five heights, or one of five columns, on noise: (M, 1, 28, 28) and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 28, 28, generator=generator) * 0.4 - 1
    labels = torch.arange(count) % 10
    for image, label in zip(images[:, 0], labels.tolist(), strict=True):
        place = slice(2 + 5 * (label % 5), 4 + 5 * (label % 5))
        (image if label < 5 else image.T)[place] = 1.0
    return images, labels


def write_bars(folder: Path, count: int = 60) -> None:
    """Both splits as the published files of MNIST."""
    folder.mkdir(exist_ok=True)
    for split, seed in (("train", 0), ("t10k", 1)):
        images, labels = bars(count, seed)
        pixels = ((images[:, 0] + 1) * 127.5).round().to(torch.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels.to(torch.uint8))):
            head = bytes((0, 0, 8, array.dim())) + struct.pack(f">{array.dim()}I", *array.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(head + array.numpy().tobytes())


def random_var(side: int, num_classes: int, shift: float = 0.0) -> VAR:
    """A generator with random weights, and codes moved by ``shift``; side is a multiple of 4."""
    scales = {"patch_nums": [1, 2, side // 4], "autoencoder": {"channel_multipliers": [1, 1, 2]}}
    tokenizer = make_tokenizer(**scales)
    tokenizer.codebook.weight.data += shift
    return make_var(tokenizer, num_classes=num_classes)
