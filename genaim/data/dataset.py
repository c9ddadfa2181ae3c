"""Map-style data sets: weighted mixtures of sources, augmentation keyed by the caller, and bad files by name.

``sample(index, key)`` is a pure function: the same index and key give the same pixels in any process, in any order. So
the batch of a step can be rebuilt without replaying the steps before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from genaim.config import Config, nearest, one_line
from genaim.data.sources import Source, SourceConfig, digest
from genaim.data.transforms import Color, Crop, image_to_tensor, parse_color

MAX_CONSECUTIVE_BAD = 1000
MIN_SEEN = 100  # a share of fewer images says little


class DataConfig(Config):
    """Data sets and how their images are prepared."""

    train: list[SourceConfig] = Field(min_length=1)
    """Training data, one data set or several; several are drawn by weight."""
    val: list[SourceConfig] = Field(default_factory=list)
    """Held-out data, read in order, with a central crop and no flip."""
    image_size: int = Field(ge=1)
    """Side of the square images in pixels."""
    background: str | tuple[int, int, int] = "white"
    """Ground under transparent pixels: a CSS name, #rrggbb or [r, g, b]."""
    crop: Crop = "center"
    """Training crop: the central square, a random square of the short side, or a random share of the area (resized)."""
    crop_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the area that crop=resized keeps, least and most."""
    flip: bool = False
    """Mirror left and right in half of the training draws."""
    class_balance: float = Field(0.0, ge=0, le=1)
    """How evenly training draws the classes within each data set: 0 draws every image of it equally often, 1 every
    class, and between them a class of n images gets a share in proportion to n^(1 - class_balance). Images without a
    label are one more class; the shares of the data sets are their weights."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """Training stops when more than this share of the images cannot be read."""
    num_workers: int = Field(0, ge=0)
    """Processes that decode images beside training; 0 decodes in the training process."""
    shuffle_buffer: int = Field(1000, ge=1)
    """Streams only: images held back to shuffle among."""

    @field_validator("train", "val", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        sources = value if isinstance(value, list | tuple) else [value]
        return [{"path": source} if isinstance(source, str) else source for source in sources]

    @field_validator("background")
    @classmethod
    def _is_a_color(cls, value: str | Color) -> str | Color:
        parse_color(value)
        return value

    @field_validator("crop_scale")
    @classmethod
    def _is_a_share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"crop_scale {list(value)} must be [least, most] with 0 < least <= most <= 1")
        return value


@dataclass(slots=True)
class Sample:
    """One example: an image, or its tokens from a cache."""

    image: Tensor | None
    """(3, H, W) float32 in [-1, 1]."""
    label: int
    """Class, -1 = none."""
    index: int
    """Index of the image in the data set: the one asked for, or the next readable one."""
    bad: list[str]
    """The file asked for, if it could not be read, as ``name (reason)``; of a stream all that were skipped."""
    tokens: Tensor | None = None
    """(N,) int64 or (N, C) float32; of a cache of moments (2 C, h, w) float32."""
    low_res: Tensor | None = None
    """The image at low resolution, (3, s, s) float32 in [-1, 1], where a cache holds it."""


@dataclass(slots=True)
class Batch:
    """Examples of one step; images or tokens, the other is None."""

    images: Tensor | None
    """(B, 3, H, W) float32 in [-1, 1]."""
    labels: Tensor
    """(B,) int64, -1 = none."""
    index: Tensor
    """(B,) int64, index of each image in the data set."""
    rows: Tensor
    """(B,) int64, position of each example in the global batch."""
    bad: list[str] = field(default_factory=list)
    """Unreadable files that were skipped, each as ``name (reason)``."""
    tokens: Tensor | None = None
    """(B, N) int64 or (B, N, C) float32; of a cache of moments (B, 2 C, h, w) float32."""
    low_res: Tensor | None = None
    """(B, 3, s, s) float32 in [-1, 1], of caches that hold it."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def take(self, keep: Tensor) -> "Batch":
        """The rows where ``keep`` (B,) is True; ``bad`` stays whole."""
        return self._map(lambda tensor: tensor[keep])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            images=None if self.images is None else change(self.images),
            labels=change(self.labels),
            index=change(self.index),
            rows=change(self.rows),
            bad=self.bad,
            tokens=None if self.tokens is None else change(self.tokens),
            low_res=None if self.low_res is None else change(self.low_res),
        )


def collate(samples: Sequence[Sample], rows: Sequence[int] | None = None) -> Batch:
    """Stacks samples of equal shapes; ``rows`` are their positions in the global batch, 0, 1, ... if not given."""
    images = [s.image for s in samples if s.image is not None]
    tokens = [s.tokens for s in samples if s.tokens is not None]
    low_res = [s.low_res for s in samples if s.low_res is not None]
    return Batch(
        images=torch.stack(images) if images else None,
        labels=torch.tensor([s.label for s in samples], dtype=torch.int64),
        index=torch.tensor([s.index for s in samples], dtype=torch.int64),
        rows=torch.tensor(range(len(samples)) if rows is None else rows, dtype=torch.int64),
        bad=[name for s in samples for name in s.bad],
        tokens=torch.stack(tokens) if tokens else None,
        low_res=torch.stack(low_res) if low_res else None,
    )


class ImageTransform:
    """The preparation of one part: training with augmentation, or validation without."""

    def __init__(self, config: DataConfig, part: Literal["train", "val"]) -> None:
        self.image_size = config.image_size
        self.background = parse_color(config.background)
        self.crop: Crop = config.crop if part == "train" else "center"
        self.crop_scale = config.crop_scale
        self.flip = config.flip and part == "train"

    @property
    def random(self) -> bool:
        """Whether the result depends on the key."""
        return self.flip or self.crop != "center"

    def __call__(self, image: Any, key: tuple[int, ...]) -> Tensor:
        """(3, H, W) float32 in [-1, 1] of a PIL image; equal keys give equal pixels."""
        return image_to_tensor(
            image,
            self.image_size,
            self.background,
            crop=self.crop,
            crop_scale=self.crop_scale,
            flip=self.flip,
            generator=np.random.default_rng(key) if self.random else None,
        )

    def fingerprint(self) -> str:
        scale = self.crop_scale if self.crop == "resized" else None
        return digest("transform 1", self.image_size, self.background, self.crop, scale, self.flip)


def merge_class_names(sources: Sequence[Any], given: Sequence[str] | None) -> tuple[list[str] | None, list[np.ndarray]]:
    """Class names of a mixture and, per source, the mixture's label of each of its labels.

    Classes of equal name are one class. ``given`` names (those of the training part) fix the numbering.

    Raises:
        ValueError: If a source has a class that is not among the given ones.
    """
    names = list(given or [])
    for source in sources:
        for name in source.class_names or []:
            if name not in names:
                if given is not None:
                    raise ValueError(f"class '{name}' is not one of the training classes; {nearest(name, given)}.")
                names.append(name)
    position = {name: label for label, name in enumerate(names)}
    maps = [np.array([position[n] for n in s.class_names or []], np.int64) for s in sources]
    return names or None, maps


def mixture_label(label: int, label_map: np.ndarray) -> int:
    """The mixture's number of a source's label; every negative label is -1.

    Raises:
        ValueError: If the source has no such class.
    """
    if label >= len(label_map):
        raise ValueError(f"label {label} is not below the number of classes, {len(label_map)}")
    return int(label_map[label]) if label >= 0 else -1


class CountedDataset(ABC):
    """A mixture of counted sources, indexed one after the other; sub-classes say what a sample holds."""

    def __init__(
        self,
        sources: Sequence[Source],
        transform: ImageTransform,
        *,
        weights: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Joins opened sources.

        Args:
            sources: The data sets.
            transform: What to do with each image.
            weights: Share of the draws of each source, relative; equal if not given.
            class_names: The numbering of classes, such as that of the training part; None numbers them by source.

        Raises:
            ValueError: If a source has a class outside ``class_names``.
        """
        self.sources = list(sources)
        self.transform = transform
        self.lengths = [len(s) for s in self.sources]
        self.weights = list(weights or [1.0] * len(self.sources))
        self.class_names, self._label_maps = merge_class_names(self.sources, class_names)
        self.num_classes = len(self.class_names) if self.class_names else None
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fingerprint(self) -> str:
        """Hex digest of the sources' fingerprints, the class numbering and the transform.

        It covers everything that decides the pixels and labels of an index. It does not cover weights, workers or where
        the data lie; a file edited in place to the same size is not noticed (IDX files are, they are hashed whole).
        """
        return digest([s.fingerprint() for s in self.sources], self.class_names, self.transform.fingerprint())

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Labels of images, (n,) int64, -1 where there is none; no image is decoded."""
        found = []
        for index in indices:
            which, local = self.place(index)
            label = self.sources[which].label(local)
            known = 0 <= label < len(self._label_maps[which])
            found.append(int(self._label_maps[which][label]) if known else -1)
        return torch.tensor(found, dtype=torch.int64)

    def content(self, indices: Sequence[int]) -> str:
        """Hex digest of the content of images in their order, and of how they are prepared.

        Unlike `fingerprint` it notices every edit and reads the files for that, 1,000 small PNG files in 0.04 s; it
        does not cover names and labels.

        Raises:
            OSError: If a file cannot be read.
        """
        places = [self.place(index) for index in indices]
        hashes = [self.sources[which].content_hash(local) for which, local in places]
        return digest(hashes, self.transform.fingerprint())

    def place(self, index: int) -> tuple[int, int]:
        """Which source holds image ``index``, and its number there."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        return which, index - (int(self._ends[which]) - self.lengths[which])

    def sample(self, index: int, key: tuple[int, ...]) -> Sample:
        """Image ``index`` augmented by ``key``, or the next readable image of the same source.

        Args:
            index: In ``[0, len(self))``.
            key: Non-negative integers that seed crop and flip, such as (seed, step, row).

        Raises:
            ValueError: If a thousand files in a row, or a whole source, cannot be read.
        """
        which, asked = self.place(index)
        source, length, first = self.sources[which], self.lengths[which], index - asked
        bad: list[str] = []
        for shift in range(min(length, MAX_CONSECUTIVE_BAD)):
            local = (asked + shift) % length
            try:
                image, label = source.read(local)
                label = mixture_label(label, self._label_maps[which])
                content = self.transform(image, key)
            except Exception as error:  # decoders raise any type; too many of these stop the training by name
                bad.append(f"{source.name(local)} ({one_line(error)})")
                continue
            return self._sample(content, label, first + local, bad[:1])  # the others are named when they are asked for
        raise ValueError(f"none of {len(bad)} images in a row could be read, first {bad[0]}; check the data set.")

    @abstractmethod
    def _sample(self, content: Tensor, label: int, index: int, bad: list[str]) -> Sample:
        """A sample of what the transform gave."""


class ImageDataset(CountedDataset):
    """Images, map-style."""

    def _sample(self, content: Tensor, label: int, index: int, bad: list[str]) -> Sample:
        return Sample(content, label, index, bad)


class BadFiles:
    """Counts unreadable files and stops when they are too many."""

    def __init__(self, max_bad_share: float, total: int | None = None) -> None:
        """``max_bad_share`` is checked after 100 images, or after all ``total`` if there are fewer."""
        self.max_bad_share = max_bad_share
        self.min_seen = min(MIN_SEEN, total) if total else MIN_SEEN
        self.seen = 0
        self.count = 0
        self.names: dict[str, None] = {}  # an ordered set: a file met in every epoch is one name

    def add(self, bad: Sequence[str], seen: int) -> None:
        """Records the unreadable files of a batch beside its ``seen`` images; the share is of both together.

        Raises:
            ValueError: If the share of unreadable files exceeds the limit.
        """
        self.count += len(bad)
        self.seen += seen + len(bad)
        self.names.update(dict.fromkeys(bad))
        if self.seen >= self.min_seen and self.count > self.max_bad_share * self.seen:
            raise ValueError(
                f"{self.summary()}: {self.count / self.seen:.1%} of the images read, more than max_bad_share = "
                f"{self.max_bad_share:.1%}. Repair or remove the files, or raise data.max_bad_share."
            )

    def summary(self) -> str:
        """One line: how many different files, and the first three by name."""
        if not self.names:
            return "no unreadable files"
        first = "; ".join(list(self.names)[:3])
        return f"{len(self.names)} unreadable file{'s' if len(self.names) > 1 else ''}, such as {first}"
