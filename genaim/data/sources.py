"""Where images come from: one `Source` per data set. This file holds image folders and IDX files.

A source lists its images when it is opened and decodes one when asked, so that any image of any step can be read
without the ones before it. `tables` adds parquet and Hub data sets, `streams` what can only be read in order.
"""

import gzip
import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image
from pydantic import Field

from genaim.config import Config, nearest, one_line
from genaim.data.transforms import open_image

Format = Literal["folder", "idx", "parquet", "hub", "tar", "moments"]
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".jp2"]
)
SPLIT_NAMES = frozenset(
    ["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "holdout", "heldout"]
)
IDX_PREFIXES = {"train": "train", "test": "t10k", "val": "t10k"}  # of the published MNIST files
IDX_UBYTE = 0x08


class SourceConfig(Config):
    """One data set; a path may stand alone for it in a recipe."""

    path: str
    """Image folder, IDX or parquet folder or file, Hub name "owner/name", tar pattern "x-{000..009}.tar", or a folder
    of latents that are cached as MAR does (.npz files of moments)."""
    format: Literal["auto"] | Format = "auto"
    """What the path is; auto looks at the name and the files."""
    split: str = "train"
    """IDX: train or test; parquet and tar folders: files whose name starts so; Hub: the split; folder: the sub-folder
    of that name; train, the default, is a class like others where they are not of splits, such as val or test."""
    subset: str | None = None
    """Hub data sets with several configurations: the name of one."""
    image_column: str | None = None
    """Parquet and Hub: the column of images; tar: the file extension. None finds it."""
    label_column: str | None = None
    """Parquet and Hub: the column of labels; tar: the file extension. None finds it, or goes without."""
    num_classes: int | None = Field(None, ge=1)
    """Number of classes of a stream (tar, streaming Hub), which cannot be counted in advance; None reads no labels
    unless the stream names its classes."""
    streaming: bool = False
    """Hub: read over the network in order instead of downloading first; resuming is then approximate."""
    weight: float = Field(1.0, gt=0)
    """Share of the draws in a mixture, relative to the other data sets and whatever their sizes."""
    limit: int | None = Field(None, ge=1)
    """Only the first n images."""
    num_images: int | None = Field(None, ge=1)
    """Only so many images, spread over all (of the first `limit`) by a hash of their number; fewer are a part of more,
    whatever the seed."""


class Source(Protocol):
    """A counted data set of images with labels in ``[0, len(class_names))``, or -1 for none."""

    class_names: list[str] | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call image ``index`` in messages: its path, or file and row."""
        ...

    def read(self, index: int) -> tuple[Any, int]:
        """Image, or what else the data set's transform takes, and label. Raises any exception if it cannot be read."""
        ...

    def label(self, index: int) -> int:
        """The label alone; nothing is decoded."""
        ...

    def content_hash(self, index: int) -> str:
        """Hex SHA-256 of the bytes that image ``index`` is decoded from.

        Raises:
            OSError: If they cannot be read.
        """
        ...

    def fingerprint(self) -> str:
        """Hex digest that does not depend on where the data lie; each class says what it covers."""
        ...


def digest(*parts: object) -> str:
    """Hex SHA-256 of JSON-able parts, cut to 32 digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def hash_content(file: Path) -> str:
    """Hex SHA-256 of a file, which is read in parts."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def detect_format(config: SourceConfig) -> Format:
    """The format of a source: as given, or by the name and files of its path.

    Raises:
        ValueError: If the path does not exist and is not a Hub name (none begins with a folder that is here), or is a
            file of no known kind.
    """
    if config.format != "auto":
        return config.format
    path = Path(config.path).expanduser()
    if config.path.endswith(".tar"):
        return "tar"
    if path.is_dir():
        names = [p.name for p in path.iterdir()]
        if any("idx3" in n for n in names):
            return "idx"
        if any(n.endswith(".tar") for n in names):
            return "tar"
        suffixes = {p.suffix.lower() for p in path.rglob("*")}
        if ".parquet" in suffixes:
            return "parquet"
        return "moments" if ".npz" in suffixes and not suffixes & IMAGE_SUFFIXES else "folder"
    if path.is_file():
        if path.suffix == ".parquet":
            return "parquet"
        if "idx3" in path.name:
            return "idx"
        raise ValueError(
            f"'{config.path}' is a file of no known kind; give a folder, or an IDX, .parquet or .tar file."
        )
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", config.path) and not config.path.startswith(".")
    if named and not path.parent.is_dir():
        return "hub"
    hub = "set format=hub for the Hub's" if named else "a Hub name owner/name"
    raise ValueError(f"'{config.path}' does not exist; give a folder, an IDX, parquet or tar file, or {hub}.")


def refuse_columns(config: SourceConfig, kind: str) -> None:
    """Raises if columns are named for a format that has none."""
    if config.image_column or config.label_column:
        raise ValueError(f"'{config.path}' is {kind} and has no columns; remove image_column and label_column.")


class ChosenSource:
    """Some images of a counted source, spread over all of it; a smaller choice is a part of every larger one.

    Image i of a source has the rank of the hash of i, and the n lowest ranks are taken, in the source's order. The
    classes keep their numbers. The fingerprint covers the source's and n.
    """

    def __init__(self, source: Source, num_images: int, name: str) -> None:
        """Chooses ``num_images`` of the source, which errors call ``name``.

        Raises:
            ValueError: If there are not so many.
        """
        if num_images > len(source):
            raise ValueError(f"'{name}' holds {len(source)} images, fewer than num_images={num_images}; lower it.")
        ranks = [hashlib.sha256(str(i).encode()).digest() for i in range(len(source))]
        self.chosen = sorted(sorted(range(len(source)), key=ranks.__getitem__)[:num_images])
        self.source, self.class_names = source, source.class_names

    def __len__(self) -> int:
        return len(self.chosen)

    def name(self, index: int) -> str:
        return self.source.name(self.chosen[index])

    def read(self, index: int) -> tuple[Any, int]:
        return self.source.read(self.chosen[index])

    def label(self, index: int) -> int:
        return self.source.label(self.chosen[index])

    def content_hash(self, index: int) -> str:
        return self.source.content_hash(self.chosen[index])

    def fingerprint(self) -> str:
        return digest("chosen", self.source.fingerprint(), len(self))


class FolderSource:
    """A folder of image files: class sub-folders, or flat and without labels.

    The fingerprint covers the relative names and sizes of the files.
    """

    content = "images"
    suffixes = IMAGE_SUFFIXES

    def __init__(self, config: SourceConfig) -> None:
        """Lists the files, sorted by relative path; files with other extensions and hidden files are ignored.

        Raises:
            ValueError: If the folder or split does not exist, holds no file, or has files or splits beside classes.
        """
        refuse_columns(config, f"a folder of {self.content}")
        root = Path(config.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"'{config.path}' is not a folder; check the path.")
        self.root = root = root / split_folder(root, config.split, self.suffixes)
        files = sorted(_walk(root, self.suffixes))
        if not files:
            raise ValueError(
                f"'{root}' holds no {self.content}; known extensions are {' '.join(sorted(self.suffixes))}."
            )
        classes = sorted({name.split("/")[0] for name in files if "/" in name})
        if classes and any("/" not in name for name in files):
            raise ValueError(
                f"'{root}' holds {self.content} beside sub-folders of {self.content}; move them into a sub-folder each."
            )
        self.files = files[: config.limit]
        self.class_names: list[str] | None = classes or None
        self._label = {name: label for label, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])

    def label(self, index: int) -> int:
        """The class of a file, -1 in a flat folder."""
        return self._label.get(self.files[index].split("/")[0], -1)

    def read(self, index: int) -> tuple[Any, int]:
        return open_image(self.root / self.files[index]), self.label(index)

    def content_hash(self, index: int) -> str:
        return hash_content(self.root / self.files[index])

    def fingerprint(self) -> str:
        return digest("folder", [(name, (self.root / name).stat().st_size) for name in self.files])


def split_folder(root: Path, split: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> str:
    """The sub-folder of a split, or an empty name where the whole folder is meant.

    Raises:
        ValueError: If there is no split of that name, or it cannot be told from a class.
    """
    if split == "train":  # the default, so that it may not have been asked for
        splits = split_folders(root, suffixes)
        if splits and split not in splits:
            raise ValueError(f"'{root}' has the splits {', '.join(splits)} and no 'train'; give split=NAME.")
        return split if splits else ""
    if not (root / split).is_dir():
        folders = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise ValueError(f"'{root}' has no split '{split}'; {nearest(split, folders)}.")
    return split


def split_folders(root: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """Sub-folders that are splits by their names, and none if a folder beside them is not, since all are classes then.

    Folders without files of the suffixes do not count.

    Raises:
        ValueError: If there are several such names beside others, or one with class folders in it.
    """
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    splits = [name for name in names if name.lower() in SPLIT_NAMES]
    others = [name for name in names if name not in splits and next(_walk(root / name, suffixes), None)]
    if not splits or not others:
        return splits
    if len(splits) > 1 or any("/" in name for name in _walk(root / splits[0], suffixes)):
        raise ValueError(
            f"'{root}' holds splits ({', '.join(splits)}) beside other folders ({', '.join(others[:5])}); give the "
            f"path of one, such as '{root / splits[0]}', or move the others."
        )
    return []


def _walk(root: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Relative names of the files that end so, but for hidden ones."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        relative = Path(folder).relative_to(root)
        for f in files:
            if Path(f).suffix.lower() in suffixes and not f.startswith("."):
                yield (relative / f).as_posix()


class IdxSource:
    """Grey images in the IDX format of MNIST, plain or gzip, held in memory.

    The labels are read from the file beside it, when there is one; the class names are "0", "1", ... The fingerprint
    covers the pixels and labels.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Reads both files.

        Raises:
            ValueError: If a file is missing or corrupt, or images and labels differ in number.
        """
        refuse_columns(config, "an IDX file")
        self.path = _idx_images_file(config)
        self.images = read_idx(self.path, 3)[: config.limit]  # (count, H, W) uint8
        if not self.images.size:
            raise ValueError(f"'{self.path}' holds no images; give another file.")
        labels_file = self.path.with_name(self.path.name.replace("images", "labels").replace("idx3", "idx1"))
        self.labels = np.full(len(self.images), -1)
        self.class_names: list[str] | None = None
        if labels_file != self.path and labels_file.is_file():
            labels = read_idx(labels_file, 1)
            self.class_names = [str(i) for i in range(int(labels.max(initial=0)) + 1)]
            labels = labels[: config.limit]
            if len(labels) != len(self.images):
                raise ValueError(
                    f"'{labels_file}' has {len(labels)} labels for {len(self.images)} images; download both again."
                )
            self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self.path} image {index}"

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), self.label(index)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def content_hash(self, index: int) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.images[index]).data).hexdigest()

    def fingerprint(self) -> str:
        content = hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()
        return digest("idx", self.images.shape, content)


def _idx_images_file(config: SourceConfig) -> Path:
    path = Path(config.path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"'{config.path}' does not exist; give an IDX file or a folder of them.")
    prefix = IDX_PREFIXES.get(config.split, config.split)
    names = sorted(p.name for p in path.iterdir() if "idx3" in p.name)
    found = [n for n in names if n.startswith(prefix)]
    if not found:
        raise ValueError(
            f"'{config.path}' has no IDX images of split '{config.split}' ({prefix}*idx3*); found {names}."
        )
    return path / found[0]


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array of an IDX file (https://yann.lecun.com/exdb/mnist), plain or gzip.

    The file is: two zero bytes, a type byte (8 = unsigned byte), the number of axes, each size as a big-endian 32-bit
    integer, then the data in row-major order.

    Raises:
        ValueError: If the header is not that of unsigned bytes with ``ndim`` axes, or data are missing or left over.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"'{path}' is not a whole gzip file ({one_line(error)}); download it again.") from None
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes((0, 0, IDX_UBYTE, ndim)):
        raise ValueError(
            f"'{path}' starts with {content[:4].hex() or 'nothing'}, not with the IDX magic 000008{ndim:02x} of "
            f"{ndim}-axis bytes; download it again, or name another file."
        )
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"'{path}' announces {'x'.join(map(str, shape))} bytes but holds {len(content) - start}; download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
