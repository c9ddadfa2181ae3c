"""Latents on disk in the format of MAR's cache (Li et al. 2024; github.com/LTH14/mar, main_cache.py).

FOLDER/class/image.npz    moments        (2 C, h, w)  mean and log variance of the image's latent, unscaled
                          moments_flip   (2 C, h, w)  those of the mirrored image

A recipe trains from such a folder as from images, its format is seen by its files. ``data.flip`` mirrors half of the
training draws. The tokenizer must be the one that wrote the moments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genaim.data.dataset import BadFiles, CountedDataset, DataConfig, ImageDataset, ImageTransform, Sample
from genaim.data.loader import eval_batches
from genaim.data.sources import ChosenSource, FolderSource, digest
from genaim.files import file_written_whole

KEYS = ("moments", "moments_flip")
Moments = tuple[np.ndarray, np.ndarray]
"""Of an image and of its mirror image, (2 C, h, w) float32 each."""


class MomentsSource(FolderSource):
    """A folder of cached moments: class sub-folders, or flat and without labels.

    The fingerprint covers the relative names and sizes of the files.
    """

    content = "cached moments"
    suffixes = frozenset([".npz"])
    shape: tuple[int, ...] | None = None
    """The only shape (2 C, h, w) to take; None takes any."""

    def read(self, index: int) -> tuple[Moments, int]:
        """Moments and label.

        Raises:
            ValueError: If the file holds something else, or moments of another shape.
        """
        moments = read_moments(self.root / self.files[index])
        if self.shape is not None and moments[0].shape != self.shape:
            raise ValueError(f"moments {moments[0].shape} instead of the tokenizer's {self.shape}")
        return moments, self.label(index)

    def fingerprint(self) -> str:
        """Covers the content of one file beside all names and sizes: moments of two autoencoders have equal ones."""
        return digest("moments", super().fingerprint(), self.content_hash(0))


class MomentsTransform(ImageTransform):
    """Chooses between an image and its mirror image, which is all that can be done to a latent."""

    def __init__(self, config: DataConfig, part: Literal["train", "val"]) -> None:
        """Takes ``flip`` of the config.

        Raises:
            ValueError: If a random crop is asked for.
        """
        super().__init__(config, part)
        if self.crop != "center":
            raise ValueError(f"cached moments cannot be cropped anew; remove data.crop={self.crop}.")

    def __call__(self, image: Moments, key: tuple[int, ...]) -> Tensor:
        """(2 C, h, w) float32; equal keys make equal choices."""
        return torch.from_numpy(image[int(self.flip and np.random.default_rng(key).random() < 0.5)])


class MomentsDataset(CountedDataset):
    """Cached moments, map-style; they take the place of a token cache."""

    def expect(self, shape: tuple[int, ...]) -> None:
        """Makes every file of another shape (2 C, h, w) an unreadable one."""
        for source in self.sources:
            files = source.source if isinstance(source, ChosenSource) else source
            assert isinstance(files, MomentsSource)
            files.shape = shape

    def _sample(self, content: Tensor, label: int, index: int, bad: list[str]) -> Sample:
        return Sample(None, label, index, bad, tokens=content)


def read_moments(path: Path) -> Moments:
    """The moments of one file; nothing in it is unpickled.

    Raises:
        ValueError: If it is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image, mirrored = (np.asarray(arrays[key], np.float32) for key in KEYS)
    except Exception:  # numpy and zipfile raise many types on a damaged file; the reason is always the content
        raise ValueError(f"not an .npz file of {' and '.join(KEYS)}") from None
    if image.ndim != 3 or len(image) % 2 or image.shape != mirrored.shape:
        raise ValueError(f"moments of shapes {image.shape} and {mirrored.shape} instead of (2 C, h, w) twice")
    if not (np.isfinite(image).all() and np.isfinite(mirrored).all()):
        raise ValueError("moments that are not finite")
    return image, mirrored


def write_moments(path: Path, moments: Moments) -> None:
    """Writes the moments of one image, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_written_whole(path) as temporary:
        np.savez(temporary, moments=moments[0], moments_flip=moments[1])


@torch.no_grad()
def cache_moments(
    dataset: ImageDataset,
    moments_fn: Callable[[Tensor], Tensor],
    folder: Path,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    bad_files: BadFiles | None = None,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the moments of every image and of its mirror image.

    For example, with the KL-16 of MAR in a model folder::

        tokenizer = load_tokenizer("models/kl16").to("cuda")
        data = DataConfig(train={"path": "imagenet/train"}, image_size=256)
        cache_moments(build_dataset(data, "train"), lambda x: tokenizer.moments(x.to("cuda")), Path("cached"))

    The files of an image folder keep their relative names; images of other sources are numbered. Files that are there
    are written anew, since nothing in them tells their tokenizer.

    Args:
        dataset: Images. Unreadable ones are left out.
        moments_fn: Images (B, 3, H, W) in [-1, 1] on the CPU to moments (B, 2 C, h, w) on any device, such as
            `LatentTokenizer.moments`.
        folder: Where to.
        batch_size: Images per call of ``moments_fn``.
        num_workers: Processes that decode images.
        bad_files: Counts the unreadable files.
        report: Called with (done, total) images after each batch.

    Raises:
        ValueError: If the data set draws crops or flips, or too many files are unreadable.
    """
    if dataset.transform.random:
        raise ValueError("moments are cached of whole images and their mirror images; remove data.crop and data.flip.")
    for number, batch in enumerate(eval_batches(dataset, batch_size, num_workers=num_workers), 1):
        if bad_files is not None:
            bad_files.add(batch.bad, len(batch))
        if len(batch):
            assert batch.images is not None
            both = [moments_fn(images).float().cpu().numpy() for images in (batch.images, batch.images.flip(-1))]
            rows = zip(batch.index.tolist(), batch.labels.tolist(), *both, strict=True)
            for index, label, image, mirrored in rows:
                write_moments(folder / _file(dataset, index, label), (image, mirrored))
        if report:
            report(min(number * batch_size, len(dataset)), len(dataset))


def _file(dataset: ImageDataset, index: int, label: int) -> str:
    """Relative path of the moments of an image.

    Raises:
        ValueError: If it has no class where others have.
    """
    source = dataset.sources[0]
    if len(dataset.sources) == 1 and isinstance(source, FolderSource):
        return f"{source.files[index]}.npz"
    if dataset.class_names is None:
        return f"{index:08d}.npz"
    if label < 0:
        raise ValueError(f"image {index} has no class, where others have one; cache these data sets apart.")
    return f"{dataset.class_names[label]}/{index:08d}.npz"
