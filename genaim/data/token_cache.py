"""Tokens on disk, so that a generator trains without running its tokenizer.

A cache is a folder named by a digest of everything that decides its content: the fingerprints of data and tokenizer,
the number of augmented views and their seed. It holds one safetensors file per 2048 images, each written under another
name and then moved into place: a file that is there is whole, and a build that was killed continues after the last one.
Another tokenizer or another crop is another folder; old ones may be deleted at any time.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from genaim.data.dataset import BadFiles, ImageDataset, Sample
from genaim.data.loader import Item, in_order
from genaim.data.sources import digest
from genaim.data.streams import StreamDataset
from genaim.data.transforms import levels_to_tensor, resize_images, tensor_to_levels
from genaim.files import file_written_whole

LAYOUT = 1  # raise it when the files change, so that older caches are not read
SHARD_IMAGES = 2048
VIEW_STREAM = 4  # keeps the draws of views apart from those of training, see loader


class TokenDataset:
    """Cached tokens, map-style like `ImageDataset`; the files are memory-mapped."""

    def __init__(
        self,
        files: Sequence[Path],
        *,
        key: str,
        source_lengths: Sequence[int],
        weights: Sequence[float],
        class_names: list[str] | None,
    ) -> None:
        """Opens the files of a complete cache; `build_token_cache` calls this.

        Args:
            files: The shards in order.
            key: Digest that names the cache.
            source_lengths: Sizes of the sources of the images, unreadable files included.
            weights: Share of the draws of each source.
            class_names: Names of the classes, if there are labels.

        Raises:
            ValueError: If no image of a source was readable.
        """
        self.files, self.key = list(files), key
        self.weights, self.class_names = list(weights), class_names
        self.num_classes = len(class_names) if class_names else None
        self._open()
        ends = np.cumsum(source_lengths)
        counts = np.bincount(np.searchsorted(ends, self._index, side="right"), minlength=len(ends))
        self.lengths = [int(c) for c in counts]
        if 0 in self.lengths:
            raise ValueError(f"no image of source {self.lengths.index(0)} could be read; check the data set.")

    def _open(self) -> None:
        shards = [shard for shard in map(load_file, self.files) if len(shard["labels"])]
        self._tokens = [shard["tokens"] for shard in shards]  # each (n, views, N) int or (n, views, N, C) float
        self._low_res = [shard["low_res"] for shard in shards if "low_res" in shard]  # each (n, views, 3, s, s) uint8
        self._labels = np.concatenate([shard["labels"].numpy() for shard in shards]) if shards else np.zeros(0, int)
        self._index = np.concatenate([shard["index"].numpy() for shard in shards]) if shards else np.zeros(0, int)
        self._ends = np.cumsum([len(tokens) for tokens in self._tokens])

    def __getstate__(self) -> dict[str, Any]:
        """Without the tensors: a spawned worker maps the files again instead of receiving a copy."""
        mapped = ("_tokens", "_low_res", "_labels", "_index")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._labels)

    def fingerprint(self) -> str:
        """Hex digest of the fingerprints of data and tokenizer, views and seed."""
        return self.key

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Labels of readable images, (n,) int64, -1 where there is none."""
        return torch.from_numpy(self._labels[list(indices)])

    def sample(self, index: int, key: tuple[int, ...]) -> Sample:
        """Tokens of the readable image ``index``: (N,) int64 or (N, C) float32; ``key`` chooses the view."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard]) - len(self._tokens[shard]))
        views = self._tokens[shard][row]
        view = int(np.random.default_rng(key).integers(len(views))) if len(views) > 1 else 0
        kind = torch.float32 if views.is_floating_point() else torch.int64
        low_res = levels_to_tensor(self._low_res[shard][row, view].numpy()) if self._low_res else None
        return Sample(None, int(self._labels[index]), index, [], tokens=views[view].to(kind), low_res=low_res)


def build_token_cache(
    dataset: ImageDataset | StreamDataset,
    encode_fn: Callable[[Tensor], Tensor],
    *,
    folder: Path,
    tokenizer_fingerprint: str,
    views: int = 1,
    low_res: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    bad_files: BadFiles | None = None,
    report: Callable[[int, int], None] | None = None,
) -> TokenDataset:
    """Encodes every image once per view, or opens what an earlier call has encoded.

    Args:
        dataset: Images. Unreadable ones are left out of the cache.
        encode_fn: Images (B, 3, H, W) in [-1, 1] on the CPU to tokens (B, N) int or (B, N, C) float on any device.
            Floats are kept at their precision.
        folder: Where caches live; this one becomes a sub-folder.
        tokenizer_fingerprint: Changes whenever ``encode_fn`` gives other tokens.
        views: Augmented passes over the images; training draws one of them each time.
        low_res: Side to which each view is reduced too, by `transforms.resize_images`; None keeps tokens alone.
        seed: Seed of the augmentation.
        batch_size: Images per call of ``encode_fn``.
        num_workers: Processes that decode images.
        bad_files: Counts the unreadable files, those of an earlier call included.
        report: Called with (encoded, total) image views, after each batch.

    Returns:
        The tokens, with the lengths and weights of the sources.

    Raises:
        ValueError: If several views are asked of a data set without augmentation, the data set is a stream, or too many
            files are unreadable.
    """
    if isinstance(dataset, StreamDataset):
        raise ValueError(
            "a token cache needs counted images, not a stream; use a folder, IDX, parquet or downloaded set."
        )
    if views < 1 or (views > 1 and not dataset.transform.random):
        raise ValueError(f"views={views} needs a random crop or flip to tell them apart; set data.flip, or views=1.")
    reduced = () if low_res is None else ("low_res", low_res)
    key = digest("tokens", LAYOUT, dataset.fingerprint(), tokenizer_fingerprint, views, seed, *reduced)
    cache = Path(folder).expanduser() / key
    cache.mkdir(parents=True, exist_ok=True)
    total, done = len(dataset) * views, 0
    files = []
    for first in range(0, len(dataset), SHARD_IMAGES):
        images = range(first, min(first + SHARD_IMAGES, len(dataset)))
        file = cache / f"shard-{first // SHARD_IMAGES:05d}.safetensors"
        bad = _whole_shard(file)
        if bad is None:
            step = (lambda n, done=done: report(done + n, total)) if report else None
            bad = _encode_shard(dataset, encode_fn, file, images, views, low_res, seed, batch_size, num_workers, step)
        elif report:
            report(done + len(images) * views, total)
        done += len(images) * views
        if bad_files is not None:
            bad_files.add(bad, len(images) - len(bad))
        files.append(file)
    return TokenDataset(
        files, key=key, source_lengths=dataset.lengths, weights=dataset.weights, class_names=dataset.class_names
    )


def _whole_shard(file: Path) -> list[str] | None:
    """Names of the unreadable images of a finished shard, None if it has to be written."""
    try:
        with safe_open(file, framework="pt") as shard:
            return list(json.loads(shard.metadata()["bad"]))
    except (OSError, SafetensorError):  # missing, or cut short by a full disk
        return None


def _encode_shard(
    dataset: ImageDataset,
    encode_fn: Callable[[Tensor], Tensor],
    file: Path,
    images: range,
    views: int,
    low_res: int | None,
    seed: int,
    batch_size: int,
    num_workers: int,
    report: Callable[[int], None] | None,
) -> list[str]:
    """Writes the shard of a range of images; returns the names of the unreadable ones."""
    pairs = [(index, view) for index in images for view in range(views)]
    items: list[Item] = [(index, (seed, VIEW_STREAM, view, index), row) for row, (index, view) in enumerate(pairs)]
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    tokens, reduced, labels, index, bad = [], list[Tensor](), [], [], dict[str, None]()
    for number, batch in enumerate(in_order(dataset, batches, num_workers), 1):
        if len(batch):
            assert batch.images is not None
            tokens.append(_compact(encode_fn(batch.images).detach().cpu(), len(batch)))
            if low_res is not None:
                reduced.append(tensor_to_levels(resize_images(batch.images, (low_res, low_res))))
            labels.append(batch.labels)
            index.append(batch.index)
        bad.update(dict.fromkeys(batch.bad))
        if report:
            report(min(number * batch_size, len(items)))
    empty = torch.zeros(0, dtype=torch.int64)
    content = {
        "tokens": rearrange(torch.cat(tokens), "(i v) ... -> i v ...", v=views).contiguous() if tokens else empty,
        "labels": torch.cat([empty, *labels])[::views].contiguous(),
        "index": torch.cat([empty, *index])[::views].contiguous(),
    }
    if reduced:
        content["low_res"] = rearrange(torch.cat(reduced), "(i v) ... -> i v ...", v=views).contiguous()
    with file_written_whole(file) as temporary:
        save_file(content, temporary, metadata={"bad": json.dumps(list(bad))})
    return list(bad)


def _compact(tokens: Tensor, count: int) -> Tensor:
    """Codebook indices as int32, half the size; raises if there is not one row per image. 8-bit pixels stay 8 bits."""
    if tokens.ndim not in (2, 3) or len(tokens) != count:
        raise ValueError(f"encode_fn gave {tuple(tokens.shape)} for {count} images; it must give (B, N) or (B, N, C).")
    return tokens if tokens.is_floating_point() or tokens.dtype == torch.uint8 else tokens.to(torch.int32)
