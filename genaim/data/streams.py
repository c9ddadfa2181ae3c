"""Data that can only be read in order: WebDataset tar shards and streaming Hub data sets.

A stream has no index, so its order is not a function of the step. Instead every reader (one per process and worker)
records the epoch, the shard and the offset it has read up to, and continues there.

**Resuming is approximate.** The shuffle buffer is not saved: the images it held are not seen again in that epoch, and
the order after the stop differs from an uninterrupted run. With another number of processes or workers the readers
without a record start their epoch anew.
"""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from genaim.config import one_line
from genaim.data.dataset import (
    MAX_CONSECUTIVE_BAD,
    Batch,
    ImageTransform,
    Sample,
    collate,
    merge_class_names,
    mixture_label,
)
from genaim.data.sources import IMAGE_SUFFIXES, Source, SourceConfig, digest
from genaim.data.tables import decode_cell, find_columns, load_hub, split_files, without_decoding
from genaim.data.transforms import open_image

Position = tuple[int, int, int]  # epoch, shard in the reader's order of that epoch, images of that shard already read


@dataclass(slots=True)
class Record:
    """One image of a stream, still encoded."""

    name: str
    read: Callable[[], tuple[Image.Image, int]]


class Stream(Protocol):
    """Shards of records; the labels are in ``[0, len(class_names))``, or -1 for none."""

    class_names: list[str] | None
    num_shards: int

    def records(self, shard: int, start: int, key: tuple[int, ...]) -> Iterator[Record]:
        """The records of a shard in a fixed order, from ``start`` on; ``key`` may shuffle them by seed and epoch."""
        ...

    def fingerprint(self) -> str: ...


def _counted_classes(config: SourceConfig) -> list[str] | None:
    """Names "0", "1", ... of the configured number of classes; without that number labels are not read."""
    if config.num_classes is None and config.label_column:
        raise ValueError(f"'{config.path}' is a stream, whose classes cannot be counted in advance; set num_classes.")
    return [str(i) for i in range(config.num_classes)] if config.num_classes else None


class TarStream:
    """WebDataset tar shards: files of one stem are one example, such as ``0001.jpg`` and ``0001.cls``.

    The fingerprint covers names and, of local files, sizes.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Lists the shards: a ``{000..009}`` or ``*`` pattern, a file, a folder (by split), or an http address.

        Raises:
            ValueError: If a local shard does not exist, or the address is not a file or http.
        """
        import braceexpand

        self.config = config
        self.class_names = _counted_classes(config)
        self.image_key = config.image_column
        self.label_key = (config.label_column or "cls") if self.class_names else None
        path = str(Path(config.path).expanduser()) if "://" not in config.path else config.path
        if path.startswith("pipe:") or ("://" in path and not path.startswith(("http://", "https://"))):
            raise ValueError(f"'{config.path}' must be local tar files or an http address; download the shards.")
        if Path(path).is_dir():
            self.shards = [str(f) for f in split_files(config, ".tar")]
        else:
            expanded = list(braceexpand.braceexpand(path))
            self.shards = [s for e in expanded for s in (sorted(glob.glob(e)) if "*" in e else [e])]
        missing = [s for s in self.shards if "://" not in s and not Path(s).is_file()]
        if missing or not self.shards:
            raise ValueError(
                f"'{config.path}' names {len(self.shards)} shards, of which {len(missing)} do not exist"
                f"{', first ' + missing[0] if missing else ''}; check the pattern."
            )
        self.num_shards = len(self.shards)

    def records(self, shard: int, start: int, key: tuple[int, ...]) -> Iterator[Record]:
        from webdataset.tariterators import tarfile_samples

        broken: list[str] = []

        def keep_going(error: Exception) -> bool:
            broken.append(one_line(error))
            return True

        url = self.shards[shard]
        for offset, files in enumerate(tarfile_samples([{"url": url}], handler=keep_going)):
            if offset >= start:
                yield Record(f"{url}:{files['__key__']}", lambda files=files: self._decode(files))  # type: ignore[misc]
        if not broken and "://" not in url and not _has_end_marker(Path(url)):
            broken.append("cut short: the end marker of a tar file is missing")  # tarfile would stop without a word
        if broken:  # a truncated or foreign file is one unreadable record, counted like a broken image
            yield Record(url, lambda: _refuse(broken[0]))

    def _decode(self, files: Mapping[str, Any]) -> tuple[Image.Image, int]:
        names = [n for n in files if not n.startswith("__")]
        images = [n for n in names if (n == self.image_key if self.image_key else _is_image(n))]
        if not images:
            raise ValueError(f"no image among the extensions {names}")
        if self.label_key and self.label_key not in files:
            raise ValueError(f"no label '{self.label_key}' among the extensions {names}")
        return open_image(files[images[0]]), int(files[self.label_key]) if self.label_key else -1

    def fingerprint(self) -> str:
        files = [(Path(s).name, Path(s).stat().st_size if "://" not in s else None) for s in self.shards]
        return digest("tar", files, self.image_key, self.label_key, self.class_names)


def _has_end_marker(path: Path) -> bool:
    """Whether a tar file ends in two zero blocks, as the format asks."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END) >= 1024 and file.seek(-1024, os.SEEK_END) >= 0 and not any(file.read())


def _is_image(extension: str) -> bool:
    return "." + extension.rsplit(".", 1)[-1] in IMAGE_SUFFIXES


def _refuse(reason: str) -> tuple[Image.Image, int]:
    raise ValueError(reason)


class HubStream:
    """A Hub data set read over the network. The fingerprint covers path, subset, split and the number of shards."""

    def __init__(self, config: SourceConfig) -> None:
        """Opens the stream.

        Raises:
            ValueError: If it cannot be loaded, or a column is missing or of a type that cannot be a label.
        """
        import datasets

        table = load_hub(config)
        if table.features is None:
            table = table._resolve_features()  # raw files without a schema: the library reads the first rows
        self.config = config
        self.image_column, self.label_column = find_columns(table.features, config)
        kind = table.features.get(self.label_column)
        named = isinstance(kind, datasets.ClassLabel)
        self.class_names = list(kind.names) if named else _counted_classes(config)
        if self.class_names is None:
            self.label_column = None
        elif self.label_column and not str(kind.dtype).startswith(("int", "uint")):
            raise ValueError(
                f"'{config.path}': column '{self.label_column}' holds {kind.dtype}, and a stream's labels must be "
                f"integers; choose another label_column, or set streaming to false."
            )
        columns = [self.image_column] + ([self.label_column] if self.label_column else [])
        self.table = without_decoding(table.select_columns(columns), self.image_column)
        self.num_shards = int(self.table.num_shards)

    def records(self, shard: int, start: int, key: tuple[int, ...]) -> Iterator[Record]:
        rows = self.table.shard(num_shards=self.num_shards, index=shard).skip(start)
        for offset, row in enumerate(rows, start):
            name = f"{self.config.path} shard {shard} row {offset}"
            yield Record(name, lambda row=row: self._decode(row))  # type: ignore[misc]

    def _decode(self, row: Mapping[str, Any]) -> tuple[Image.Image, int]:
        label = row[self.label_column] if self.label_column else None
        return decode_cell(row[self.image_column]), -1 if label is None else int(label)

    def fingerprint(self) -> str:
        return digest("hub-stream", self.config.path, self.config.subset, self.config.split, self.num_shards)


class CountedStream:
    """A counted source in a mixture with streams: one shard, in a random order per epoch."""

    num_shards = 1

    def __init__(self, source: Source) -> None:
        self.source = source
        self.class_names = source.class_names

    def records(self, shard: int, start: int, key: tuple[int, ...]) -> Iterator[Record]:
        for i in np.random.default_rng(key).permutation(len(self.source))[start:].tolist():
            yield Record(self.source.name(i), lambda i=i: self.source.read(i))  # type: ignore[misc]

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class StreamDataset:
    """A mixture of streams. It has no length and no index; `make_loader` and `eval_batches` read it."""

    def __init__(
        self,
        streams: Sequence[Stream],
        transform: ImageTransform,
        *,
        weights: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        shuffle_buffer: int = 1000,
    ) -> None:
        """Joins opened streams; the arguments are those of `ImageDataset` and the size of the shuffle buffer."""
        self.streams = list(streams)
        self.transform = transform
        weights = list(weights or [1.0] * len(self.streams))
        self.shares = np.asarray(weights, np.float64) / sum(weights)
        self.class_names, self._label_maps = merge_class_names(self.streams, class_names)
        self.num_classes = len(self.class_names) if self.class_names else None
        self.shuffle_buffer = shuffle_buffer

    def fingerprint(self) -> str:
        """Hex digest of the streams' fingerprints, the class numbering and the transform."""
        return digest([s.fingerprint() for s in self.streams], self.class_names, self.transform.fingerprint())

    def decode(self, which: int, record: Record, index: int, key: tuple[int, ...], bad: list[str]) -> Sample | None:
        """The decoded record, or None after adding it to ``bad``."""
        try:
            image, label = record.read()
            label = mixture_label(label, self._label_maps[which])
            pixels = self.transform(image, key)
        except Exception as error:  # decoders raise any type; too many of these stop the training by name
            bad.append(f"{record.name} ({one_line(error)})")
            return None
        return Sample(pixels, label, index, [])


class Reader:
    """One of ``num_readers`` readers that share a `StreamDataset`: an infinite, shuffled iterator of samples.

    A stream with at least as many shards as readers is dealt by shards; one with fewer is read whole by every reader,
    which keeps every ``num_readers``-th record.
    """

    def __init__(
        self, dataset: StreamDataset, seed: int, reader: int, num_readers: int, state: Mapping[str, Any] | None = None
    ) -> None:
        """``state`` continues a reader where `state_dict` was taken."""
        self.dataset, self.seed, self.reader, self.num_readers = dataset, seed, reader, num_readers
        state = state or {"positions": [(0, 0, 0)] * len(dataset.streams), "draws": 0}
        self.positions: list[Position] = [(int(e), int(s), int(o)) for e, s, o in state["positions"]]
        self.draws = int(state["draws"])

    def state_dict(self) -> dict[str, Any]:
        """What has been read so far, shuffle buffer included: per stream (epoch, shard, offset), and the draws made."""
        return {"positions": [list(p) for p in self.positions], "draws": self.draws}

    def samples(self) -> Iterator[Sample]:
        """Decoded samples; ``index`` is a running number that no other reader uses.

        Raises:
            ValueError: If a thousand records in a row cannot be read, or a stream is empty.
        """
        generator = np.random.default_rng((self.seed, self.reader, self.draws))
        feeds = [self._shuffled(which, generator) for which in range(len(self.dataset.streams))]
        bad: list[str] = []
        while True:
            which = int(generator.choice(len(feeds), p=self.dataset.shares))
            index = self.draws * self.num_readers + self.reader
            record = next(feeds[which])
            self.draws += 1
            sample = self.dataset.decode(which, record, index, (self.seed, index), bad)
            if sample is not None:
                sample.bad, bad = bad, []
                yield sample
            elif len(bad) >= MAX_CONSECUTIVE_BAD:
                raise ValueError(f"none of {len(bad)} records in a row could be read, first {bad[0]}; check the data.")

    def _shuffled(self, which: int, generator: np.random.Generator) -> Iterator[Record]:
        records = self._ordered(which)
        buffer = [next(records) for _ in range(self.dataset.shuffle_buffer)]
        for record in records:
            slot = int(generator.integers(len(buffer)))
            held, buffer[slot] = buffer[slot], record
            yield held

    def _ordered(self, which: int) -> Iterator[Record]:
        stream = self.dataset.streams[which]
        by_shard = stream.num_shards >= self.num_readers
        epoch, first_shard, first_offset = self.positions[which]
        while True:
            key = (self.seed, which, epoch)
            order = np.random.default_rng(key).permutation(stream.num_shards)
            mine = order[self.reader :: self.num_readers] if by_shard else order
            found = first_shard > 0 or first_offset > 0
            for shard in range(first_shard, len(mine)):
                for offset, record in enumerate(stream.records(int(mine[shard]), first_offset, key), first_offset):
                    self.positions[which] = (epoch, shard, offset + 1)
                    if by_shard or offset % self.num_readers == self.reader:
                        found = True
                        yield record
                first_offset = 0
            if not found:
                raise ValueError(
                    f"stream {which} of the mixture holds no records for reader {self.reader + 1} of "
                    f"{self.num_readers}; check its shards, or take fewer processes or data.num_workers."
                )
            epoch, first_shard = epoch + 1, 0
            self.positions[which] = (epoch, 0, 0)


def stream_batches(dataset: StreamDataset, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """One pass over all streams in order; batch k belongs to process ``k % world_size``, the last may be short.

    Unreadable records are left out and named, so that a batch may be shorter.
    """
    records = (
        (which, record)
        for which, stream in enumerate(dataset.streams)
        for shard in range(stream.num_shards)
        for record in stream.records(shard, 0, (0,))
    )
    chunk: list[tuple[int, int, Record]] = []
    number = 0
    for index, (which, record) in enumerate(records):
        chunk.append((index, which, record))
        if len(chunk) == batch_size:
            if number % world_size == rank:
                yield _decode_chunk(dataset, chunk)
            chunk, number = [], number + 1
    if chunk and number % world_size == rank:
        yield _decode_chunk(dataset, chunk)


def _decode_chunk(dataset: StreamDataset, chunk: Sequence[tuple[int, int, Record]]) -> Batch:
    bad: list[str] = []
    decoded = [dataset.decode(which, record, index, (0, index), bad) for index, which, record in chunk]
    rows = [row for row, sample in enumerate(decoded) if sample is not None]
    batch = collate([sample for sample in decoded if sample is not None], rows)
    batch.bad = bad
    return batch
