"""Parquet files and Hub data sets, read through the ``datasets`` library.

Rows stay encoded in a memory-mapped Arrow file and are decoded one at a time with our own reader, so that a broken
image is one bad row and not a crash of the whole table.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from genaim.config import nearest, one_line
from genaim.data.sources import SourceConfig, digest, hash_content
from genaim.data.transforms import open_image

if TYPE_CHECKING:
    from datasets import Dataset, Features

IMAGE_NAMES = ("image", "img")
MAX_CLASSES = 1_000_000  # integers beyond are ids, not classes
LABEL_NAMES = ("label", "labels", "class", "fine_label")


def split_files(config: SourceConfig, suffix: str) -> list[Path]:
    """The files of a split: the path itself if it is a file, else those below it whose name starts with the split.

    Raises:
        ValueError: If there are none.
    """
    path = Path(config.path).expanduser()
    if path.is_file():
        return [path]
    files = sorted(path.rglob(f"*{suffix}"))
    if not files:
        raise ValueError(f"'{config.path}' holds no {suffix} file; check the path.")
    found = [f for f in files if f.name.startswith(config.split)]
    if not found:
        names = ", ".join(f.name for f in files[:5])
        raise ValueError(
            f"'{config.path}' has no split '{config.split}': no {suffix} file starts so (found {names}); "
            f"set split to such a start, or path to one file."
        )
    return found


def load_hub(config: SourceConfig) -> Any:
    """``datasets.load_dataset`` of a source, a Dataset or an IterableDataset, its errors on one line.

    Raises:
        ValueError: If the data set, its subset or its split cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(config.path, config.subset, split=config.split, streaming=config.streaming)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        local = "" if Path(config.path).exists() else " (there is no such local folder either)"
        raise ValueError(
            f"Hub data set '{config.path}', split '{config.split}', cannot be loaded{local}: "
            f"{one_line(error).rstrip('.')}; check path, subset and split, network, and `hf auth login` if private."
        ) from None


def find_columns(features: "Features", config: SourceConfig) -> tuple[str, str | None]:
    """The columns of images and of labels (None = no labels): as configured, or by type and name.

    Raises:
        ValueError: If a configured column does not exist, or no single image column can be found.
    """
    import datasets

    for column in (config.image_column, config.label_column):
        if column is not None and column not in features:
            raise ValueError(f"'{config.path}' has no column '{column}'; {nearest(column, features)}.")
    image = config.image_column
    if image is None:
        images = [name for name, kind in features.items() if _holds_images(kind)]
        named = [name for name in IMAGE_NAMES if name in images]
        if not named and len(images) != 1:
            raise ValueError(
                f"'{config.path}' has {len(images)} columns of images; set image_column to one of {list(features)}."
            )
        image = (named or images)[0]
    if config.label_column == image:
        raise ValueError(
            f"'{config.path}': column '{image}' holds the images and cannot be a label; change label_column."
        )
    if config.label_column is not None:
        return image, config.label_column
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    integers = [name for name, kind in features.items() if str(getattr(kind, "dtype", "")).startswith("int")]
    named = [name for name in LABEL_NAMES if name in labels + integers]
    return image, next(iter(named), labels[0] if len(labels) == 1 else None)


def _holds_images(kind: Any) -> bool:
    """Whether a feature is an Image, or the struct {bytes, path} or bytes that an Image becomes without metadata."""
    import datasets

    if isinstance(kind, Mapping):
        return "bytes" in kind
    return isinstance(kind, datasets.Image) or getattr(kind, "dtype", None) in ("binary", "large_binary")


def without_decoding(table: Any, image: str) -> Any:
    """The table (Dataset or IterableDataset) with its image column left as encoded bytes."""
    import datasets

    if isinstance(table.features[image], datasets.Image):
        return table.cast_column(image, datasets.Image(decode=False))
    return table


def decode_cell(value: Any) -> Image.Image:
    """An image from a cell: bytes, or a mapping of bytes and path.

    Raises:
        ValueError: If the cell is empty or holds something else.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | str):
        return open_image(value)
    raise ValueError("the cell is empty" if value is None else f"the cell holds {type(value).__name__}, not bytes")


def hash_cell(value: Any) -> str:
    """Hex SHA-256 of what `decode_cell` decodes; of an empty cell that of nothing."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    return hash_content(Path(value)) if isinstance(value, str) else hashlib.sha256(value or b"").hexdigest()


class TableSource:
    """A parquet or Hub data set with an image column and, if it has one, a label column.

    The fingerprint covers names and sizes of the parquet files; of a Hub data set name, subset, split and the revision
    and sizes of its files.
    """

    def __init__(self, config: SourceConfig, kind: str) -> None:
        """Opens the table, ``kind`` being "parquet" or "hub".

        Raises:
            ValueError: If it cannot be loaded, is empty, or a column is missing or of a type that cannot be a label.
        """
        import datasets

        if kind == "parquet":
            files = split_files(config, ".parquet")
            self._identity = digest("parquet", [(f.name, f.stat().st_size) for f in files])
            try:
                table = datasets.Dataset.from_parquet([str(f) for f in files])
            except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
                cause = error.__cause__ or error
                raise ValueError(f"'{config.path}' is not readable as parquet: {one_line(cause)}") from None
        else:
            table = load_hub(config)
            self._identity = _hub_identity(table, config)
        if not len(table):
            raise ValueError(f"'{config.path}', split '{config.split}', has no rows; choose another split.")
        self.path = config.path
        self.image_column, self.label_column = find_columns(table.features, config)
        columns = [self.image_column] + ([self.label_column] if self.label_column else [])
        table = without_decoding(table.select_columns(columns), self.image_column)
        self.class_names, self._labels = _classes(table, self.label_column, config)
        self.table: Dataset = table.select(range(min(config.limit or len(table), len(table))))

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return f"{self.path} row {index}"

    def read(self, index: int) -> tuple[Image.Image, int]:
        row = self.table[index]
        return decode_cell(row[self.image_column]), self._number(row[self.label_column] if self.label_column else None)

    def label(self, index: int) -> int:
        return self._number(self._label_values[index]) if self.label_column else -1

    def content_hash(self, index: int) -> str:
        return hash_cell(self.table[index][self.image_column])

    @cached_property
    def _label_values(self) -> list[Any]:
        """The column of labels, which is small; row by row the images would be read beside it."""
        return list(self.table.select_columns([self.label_column])[:][self.label_column])

    def _number(self, value: Any) -> int:
        if value is None:
            return -1
        return self._labels[value] if self._labels is not None else int(value)

    def fingerprint(self) -> str:
        return digest(self._identity, self.image_column, self.label_column, len(self))


def _classes(table: Any, column: str | None, config: SourceConfig) -> tuple[list[str] | None, dict[str, int] | None]:
    """Class names, and the label of each string where labels are strings."""
    import datasets

    if column is None:
        return None, None
    kind = table.features[column]
    if isinstance(kind, datasets.ClassLabel):
        return list(kind.names), None
    dtype = str(getattr(kind, "dtype", type(kind).__name__))
    values: Iterable[Any] = (v for v in table.unique(column) if v is not None)
    if dtype.startswith(("int", "uint")):
        count = max(values, default=-1) + 1
        if count > MAX_CLASSES:
            raise ValueError(
                f"'{config.path}': column '{column}' goes up to {count - 1}, more than {MAX_CLASSES} classes; "
                f"choose another label_column."
            )
        return [str(i) for i in range(count)], None
    if dtype in ("string", "large_string"):
        names = sorted(values)
        return names, {name: label for label, name in enumerate(names)}
    raise ValueError(
        f"'{config.path}': column '{column}' holds {dtype}, which cannot be a label; choose integers or strings."
    )


def _hub_identity(table: Any, config: SourceConfig) -> str:
    """Of the files' addresses keep what follows ``@``, revision and name, so that local mirrors and caches agree."""
    files = table.info.download_checksums or {}
    names = sorted(
        (url.rsplit("@", 1)[-1] if "@" in url else os.path.basename(url), (entry or {}).get("num_bytes"))
        for url, entry in files.items()
    )
    return digest("hub", os.path.basename(config.path), config.subset, config.split, names, table.num_rows)
