"""From a `DataConfig` to a data set: chooses the source class of each format."""

from collections.abc import Sequence
from typing import Literal

from genaim.data.dataset import DataConfig, ImageDataset, ImageTransform
from genaim.data.moments import MomentsDataset, MomentsSource, MomentsTransform
from genaim.data.sources import ChosenSource, FolderSource, IdxSource, Source, SourceConfig, detect_format
from genaim.data.streams import CountedStream, HubStream, StreamDataset, TarStream
from genaim.data.tables import TableSource


def is_stream(config: SourceConfig) -> bool:
    """Whether a source can only be read in order: tar shards, or a streaming Hub data set."""
    return config.streaming or detect_format(config) == "tar"


def open_source(config: SourceConfig) -> Source:
    """Opens a counted source.

    Raises:
        ValueError: If the path, split or columns are wrong, or a field does not apply to the format.
    """
    kind = _checked_format(config)
    if config.num_classes is not None:
        raise ValueError(f"'{config.path}' is {kind}, whose classes are counted; remove num_classes.")
    source: Source
    if kind == "folder":
        source = FolderSource(config)
    elif kind == "moments":
        source = MomentsSource(config)
    else:
        source = IdxSource(config) if kind == "idx" else TableSource(config, kind)
    return source if config.num_images is None else ChosenSource(source, config.num_images, config.path)


def open_stream(config: SourceConfig) -> TarStream | HubStream:
    """Opens a source that is read in order.

    Raises:
        ValueError: As `open_source`.
    """
    kind = _checked_format(config)
    for name in ("limit", "num_images"):
        if (number := getattr(config, name)) is not None:
            raise ValueError(f"'{config.path}' is read as a stream, which cannot be cut at {name}={number}; remove it.")
    return TarStream(config) if kind == "tar" else HubStream(config)


def _checked_format(config: SourceConfig) -> str:
    kind = detect_format(config)
    for name in ("subset", "streaming"):
        if getattr(config, name) and kind != "hub":
            raise ValueError(f"'{config.path}' has format {kind}, but {name} is for Hub data sets; remove {name}.")
    return kind


def build_dataset(
    config: DataConfig, part: Literal["train", "val"], *, class_names: Sequence[str] | None = None
) -> ImageDataset | MomentsDataset | StreamDataset:
    """Opens the training or validation part.

    Args:
        config: The data sets and their preparation.
        part: "train" draws crops and flips; "val" is deterministic.
        class_names: Class numbering to keep, that of the training part or of a checkpoint. Without it classes are
            numbered by the names found in this part alone.

    Returns:
        A map-style data set, or a `StreamDataset` if any source can only be read in order.

    Raises:
        ValueError: If the part is empty, a source cannot be opened, or it mixes images with cached moments.
    """
    configs = config.train if part == "train" else config.val
    if not configs:
        raise ValueError(f"the configuration names no {part} data; add data.{part}.")
    weights = [c.weight for c in configs]
    cached = [detect_format(c) == "moments" for c in configs]
    if any(cached):
        if not all(cached):
            raise ValueError(f"data.{part} mixes images with cached moments; cache the moments of all of them.")
        sources = [open_source(c) for c in configs]
        return MomentsDataset(sources, MomentsTransform(config, part), weights=weights, class_names=class_names)
    transform = ImageTransform(config, part)
    if not any(is_stream(c) for c in configs):
        sources = [open_source(c) for c in configs]
        return ImageDataset(sources, transform, weights=weights, class_names=class_names)
    streams = [open_stream(c) if is_stream(c) else CountedStream(open_source(c)) for c in configs]
    return StreamDataset(
        streams, transform, weights=weights, class_names=class_names, shuffle_buffer=config.shuffle_buffer
    )
