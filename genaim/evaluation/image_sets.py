"""Sets of 8-bit images to compare: generated, real, reconstructed, or from files, each with a digest of its content."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genaim.config import one_line
from genaim.data.dataset import ImageDataset, collate
from genaim.data.sources import FolderSource, SourceConfig, digest
from genaim.data.transforms import levels_to_tensor, open_image, tensor_to_levels, to_rgb
from genaim.tokenizers import Tokenizer

CHUNK = 64
"""Images that one process generates and measures together, whatever the number of processes."""
ImagesFn = Callable[[range], Tensor]
"""8-bit images (n, 3, H, W) of a range of indices, on the CPU."""
SampleFn = Callable[[Tensor, int], Tensor]
"""Images (n, 3, H, W) in [-1, 1] of labels (n,), the first of which has this index."""
LabelRule = Literal["balanced", "uniform", "data"]
GOLDEN = (5**0.5 - 1) / 2
MAX_BAD_SHARE = 0.01  # of a data set's images, as in training
LABEL_SEED = 7919  # keeps the draws of labels apart from others of the same seed


@dataclass(frozen=True)
class ImageSet:
    """Images of equal size by their index."""

    name: str
    """What tables call it."""
    key: str
    """Digest of everything that decides its pixels: the content of files; of what is generated weights, settings, code
    and the number of threads."""
    count: int
    """How many."""
    size: tuple[int, int]
    """Height and width in pixels."""
    images: ImagesFn
    """8-bit images (n, 3, H, W) of a range of indices."""


def chunked(count: int) -> int:
    """As many images as fill the chunks of ``count``.

    Generated chunks are always whole, so that more images can be asked for later.
    """
    return num_chunks(count) * CHUNK


def size_in_words(size: tuple[int, int] | None) -> str:
    """``WIDTHxHEIGHT`` of a height and width; None is unknown."""
    return "unknown" if size is None else f"{size[1]}x{size[0]}"


def num_chunks(count: int) -> int:
    """Chunks that hold so many images; the last may hold fewer than a chunk."""
    return -(-count // CHUNK)


# Generated


def generated(name: str, key: str, labels: Tensor, side: int, sample_fn: SampleFn) -> ImageSet:
    """Images of a generator.

    Args:
        name: What it is called.
        key: Digest of weights and settings; that of the labels is added here.
        labels: Class of every image, (count,) int64, count a multiple of a chunk.
        side: Of the images.
        sample_fn: Samples a chunk.
    """

    def images(indices: range) -> Tensor:
        return tensor_to_levels(sample_fn(labels[indices.start : indices.stop], indices.start)).cpu()

    return ImageSet(name, key, len(labels), (side, side), images)


def choose_labels(rule: LabelRule, count: int, classes: Sequence[int], seed: int, real: Tensor | None = None) -> Tensor:
    """The class of every generated image, (count,) int64; that of image i does not depend on the count.

    Args:
        rule: ``balanced`` takes the classes in turn, so that each has equally many; ``uniform`` draws them (ADM's
            protocol); ``data`` follows the shares of the real labels, evenly (by multiples of the golden ratio).
        count: Number of images.
        classes: To choose from.
        seed: Of the draws.
        real: Labels of real images, (M,) int64, for ``data``.

    Raises:
        ValueError: If the list of classes is empty, or no real label is among them.
    """
    if not classes:
        raise ValueError("the list of classes is empty; name one or more, or leave --classes out for all.")
    allowed = torch.tensor(classes)
    if rule == "balanced":
        return allowed[torch.arange(count) % len(allowed)]
    if rule == "uniform":
        generator = np.random.default_rng((LABEL_SEED, seed))
        return allowed[torch.from_numpy(generator.integers(len(allowed), size=count))]
    counts = torch.zeros(len(allowed)) if real is None else (real[:, None] == allowed).sum(0).double()
    if counts.sum() == 0:
        raise ValueError("--labels data follows the labels of the reference, which has none; take balanced or uniform.")
    ends = (counts / counts.sum()).cumsum(0)
    where = (torch.arange(count, dtype=torch.float64) + 0.5) * GOLDEN % 1
    return allowed[torch.searchsorted(ends, where, right=True).clamp_max(len(allowed) - 1)]


# Real


def real(name: str, data: ImageDataset, indices: Sequence[int]) -> ImageSet:
    """Images of a data set by their numbers, prepared as for validation.

    In place of a file that cannot be read comes the next one; asking for an image raises ValueError when they are many.
    The key is of the content of the images' files, see `ImageDataset.content`. All are read for it, be it 140 GB of
    ImageNet: that is less work than to decode them once, and notices what names, sizes and times do not.
    """
    bad: dict[str, None] = {}  # an ordered set

    def images(wanted: range) -> Tensor:
        batch = collate([data.sample(indices[i], (0,)) for i in wanted])
        bad.update(dict.fromkeys(batch.bad))
        if len(bad) > MAX_BAD_SHARE * len(indices):
            raise ValueError(
                f"{len(bad)} or more of the {len(indices):,} images of '{name}' cannot be read, such as "
                f"{next(iter(bad))}; repair or remove such files, of which {MAX_BAD_SHARE:.0%} are allowed."
            )
        assert batch.images is not None
        return tensor_to_levels(batch.images)

    side = data.transform.image_size
    return ImageSet(name, digest("real", data.content(indices)), len(indices), (side, side), images)


def some(images: ImageSet, count: int | None) -> ImageSet:
    """At most ``count`` of a set's images, evenly over them; None takes all."""
    chosen = evenly(range(images.count), count)
    if len(chosen) == images.count:
        return images

    def read(wanted: range) -> Tensor:
        return torch.cat([images.images(range(chosen[i], chosen[i] + 1)) for i in wanted])

    return ImageSet(images.name, digest("some", images.key, chosen), len(chosen), images.size, read)


def evenly(candidates: Sequence[int], count: int | None) -> list[int]:
    """At most ``count`` of the candidates, evenly over them; None takes all."""
    if count is None or count >= len(candidates):
        return list(candidates)
    return [candidates[i * len(candidates) // count] for i in range(count)]


def reconstructed(name: str, source: ImageSet, tokenizer: Tokenizer, weights: str, device: torch.device) -> ImageSet:
    """What a tokenizer makes of the images of another set."""

    @torch.no_grad()
    def images(wanted: range) -> Tensor:
        inputs = levels_to_tensor(source.images(wanted).numpy())
        return tensor_to_levels(tokenizer.decode(tokenizer.encode(inputs.to(device)))).cpu()

    return ImageSet(name, digest("reconstructed", source.key, weights), source.count, source.size, images)


# Files


def from_folder(path: Path) -> ImageSet:
    """The image files of a folder as they are, sorted by name: nothing is resized or cropped.

    The key is of the files' content, so that names and times do not matter and every edit does.

    Raises:
        ValueError: If there is none.
    """
    source = FolderSource(SourceConfig(path=str(path)))

    def read(index: int) -> Tensor:
        try:
            picture = to_rgb(open_image(source.root / source.files[index]))
        except Exception as error:  # decoders raise any type
            raise ValueError(f"'{source.name(index)}' cannot be read ({one_line(error)}); remove it.") from None
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)

    height, width = read(0).shape[1:]

    def images(wanted: range) -> Tensor:
        found = [read(i) for i in wanted]
        for i, picture in zip(wanted, found, strict=True):
            if picture.shape[1:] != (height, width):
                raise ValueError(
                    f"'{source.name(i)}' has {picture.shape[2]}x{picture.shape[1]} pixels, and '{source.name(0)}' has "
                    f"{width}x{height}; give images of one size."
                )
        return torch.stack(found)

    key = digest("files", [source.content_hash(i) for i in range(len(source))])
    return ImageSet(path.name, key, len(source.files), (height, width), images)


def from_array(name: str, array: np.ndarray) -> ImageSet:
    """The images (M, H, W, 3) of uint8 that ADM keeps as ``arr_0``.

    Raises:
        ValueError: If they are none.
    """
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"arr_0 of '{name}' is {array.dtype} {array.shape}; it must be uint8 (images, height, width, 3)."
        )

    def images(wanted: range) -> Tensor:
        return torch.from_numpy(array[wanted.start : wanted.stop].copy()).permute(0, 3, 1, 2)

    key = digest("array", array.shape, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest())
    return ImageSet(name, key, len(array), array.shape[1:3], images)
