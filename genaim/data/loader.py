"""Batches: which samples a step takes, and the processes that decode them.

For map-style data the batch of a step is a pure function of (seed, step), whatever the number of processes and workers
and wherever the run started; each process takes its contiguous rows of it. Streams are read in order instead, see
`streams`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from genaim.data.dataset import Batch, Sample, collate
from genaim.data.streams import Reader, StreamDataset, stream_batches

MIXTURE_BLOCK = 10_000  # draws after which every group has had exactly its share, rounded to a draw
LARGEST_BLOCK = 1_000_000
LEAST_DRAWS = 10  # of a group in a block: small shares make blocks longer
SOURCE_STREAM, ORDER_STREAM, AUGMENT_STREAM = 1, 2, 3  # keep the random draws of one seed apart
Item = tuple[int, tuple[int, ...], int]  # index, augmentation key, row of the global batch


class MapDataset(Protocol):
    """What the loader needs of a map-style data set: `ImageDataset` or `TokenDataset`."""

    lengths: list[int]
    weights: list[float]

    def labels(self, indices: Sequence[int]) -> Tensor: ...

    def sample(self, index: int, key: tuple[int, ...]) -> Sample: ...


class StepSampler:
    """The sample indices of each step, as a pure function of (seed, step).

    1. A run is one row of draws; step s takes draws ``[s * batch_size, (s + 1) * batch_size)``.
    2. Each block of draws is dealt to the groups by weight, in a random order keyed by (seed, block). It has 10,000
       draws, or more where a share is so small that it would be less than 10 of them, up to a million.
    3. The n-th draw of a group is entry ``n % length`` of its permutation keyed by (seed, group, epoch), where epoch
       is ``n // length``: every image appears exactly once per epoch of its group.

    A single group skips 2. Batches run across the ends of epochs; no image is dropped.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        members: np.ndarray | None = None,
    ) -> None:
        """Joins groups of samples.

        Args:
            lengths: Sizes of the groups: the sources of a mixture, or their classes.
            batch_size: Samples of a step.
            seed: Seed of the order.
            weights: Shares of the draws of each group, relative; equal if not given.
            members: Sample indices of all groups, one group after the other; ``0, 1, ...`` if not given.

        Raises:
            ValueError: If the batch size is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1.")
        self.lengths = list(lengths)
        self.starts = np.cumsum([0, *self.lengths[:-1]])
        self.members = np.arange(sum(lengths)) if members is None else members
        self.batch_size, self.seed = batch_size, seed
        weights = weights or [1.0] * len(self.lengths)
        self.block = min(max(MIXTURE_BLOCK, math.ceil(LEAST_DRAWS * sum(weights) / min(weights))), LARGEST_BLOCK)
        self.quotas = _quotas(weights, self.block)
        self._permutation = lru_cache(maxsize=2 * len(self.lengths))(self._draw_permutation)
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def _draw_permutation(self, group: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, ORDER_STREAM, group, epoch)).permutation(self.lengths[group])

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Group of each draw of a block, and how many draws of that group came before it in the block."""
        deal = np.repeat(np.arange(len(self.quotas)), self.quotas)
        deal = np.random.default_rng((self.seed, SOURCE_STREAM, block)).permutation(deal)
        before = np.empty_like(deal)
        before[np.argsort(deal, kind="stable")] = np.concatenate([np.arange(quota) for quota in self.quotas])
        return deal, before

    def indices(self, step: int) -> list[int]:
        """Sample indices of the global batch of a step, ``batch_size`` of them."""
        return [self._index(draw) for draw in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def _index(self, draw: int) -> int:
        group, n = 0, draw
        if len(self.lengths) > 1:
            block, place = divmod(draw, self.block)
            deal, before = self._block(block)
            group = int(deal[place])
            n = block * self.quotas[group] + int(before[place])
        epoch, place = divmod(n, self.lengths[group])
        return int(self.members[self.starts[group] + self._permutation(group, epoch)[place]])


def _quotas(weights: Sequence[float], block: int) -> list[int]:
    """Draws of each group in a block, by largest remainder; every group has at least one."""
    shares = np.asarray(weights, np.float64) / sum(weights) * block
    quotas = np.maximum(np.floor(shares), 1).astype(int)
    while quotas.sum() != block:
        missing = shares - quotas
        if quotas.sum() < block:
            quotas[missing.argmax()] += 1
        else:
            quotas[np.where(quotas > 1, missing, np.inf).argmin()] -= 1
    return [int(q) for q in quotas]


def class_groups(dataset: MapDataset | StreamDataset, balance: float) -> tuple[list[int], list[float], np.ndarray]:
    """The classes of each source as groups for `StepSampler`: lengths, weights and members.

    A class of n images gets a share of its source's draws in proportion to ``n ** (1 - balance)``; the images without a
    label are one more class.

    Raises:
        ValueError: If the data are a stream, or no image has a label.
    """
    if isinstance(dataset, StreamDataset):
        raise ValueError(
            f"data.class_balance={balance} needs counted images, not a stream; remove it, or use a folder, IDX, "
            "parquet or downloaded set."
        )
    lengths, weights, members = list[int](), list[float](), list[np.ndarray]()
    ends = np.cumsum(dataset.lengths)
    labels = dataset.labels(range(int(ends[-1]))).numpy()
    if (labels < 0).all():
        raise ValueError(f"data.class_balance={balance} needs labels, and no image has one; remove it.")
    for end, length, weight in zip(ends, dataset.lengths, dataset.weights, strict=True):
        _, counts = np.unique(labels[end - length : end], return_counts=True)
        shares = counts ** (1.0 - balance)
        lengths += counts.tolist()
        weights += (weight * shares / shares.sum()).tolist()
        members.append(end - length + np.argsort(labels[end - length : end], kind="stable"))
    return lengths, weights, np.concatenate(members)


class _StepBatches:
    """For the data loader: per step this process's list of (index, key, row)."""

    def __init__(self, sampler: StepSampler, start_step: int, rows: range) -> None:
        self.sampler, self.start_step, self.rows = sampler, start_step, rows

    def __iter__(self) -> Iterator[list[Item]]:
        step = self.start_step
        while True:
            indices = self.sampler.indices(step)
            yield [(indices[row], (self.sampler.seed, AUGMENT_STREAM, step, row), row) for row in self.rows]
            step += 1


class _Fetch:
    """For the data loader: turns a list of (index, key, row) into a batch inside the worker."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, items: list[Item]) -> Batch:
        return collate([self.dataset.sample(index, key) for index, key, _ in items], [row for _, _, row in items])


class _StreamFetch(IterableDataset):  # type: ignore[type-arg]
    """For the data loader: whole batches of one reader, with the reader's name and record."""

    def __init__(
        self, dataset: StreamDataset, seed: int, rows: range, rank: int, world_size: int, state: Mapping[str, Any]
    ) -> None:
        self.dataset, self.seed, self.rows, self.rank, self.world_size = dataset, seed, rows, rank, world_size
        self.state = state

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any], Batch]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader_number, num_readers = self.rank * workers + number, self.world_size * workers
        name = f"{reader_number}/{num_readers}"
        reader = Reader(self.dataset, self.seed, reader_number, num_readers, self.state.get(name))
        samples = reader.samples()
        while True:
            batch = collate([next(samples) for _ in self.rows], list(self.rows))
            yield name, reader.state_dict(), batch


class Loader(Iterator[Batch]):
    """An infinite iterator of batches that knows where it is."""

    def __init__(self, loader: Any, step: int, readers: Mapping[str, Any]) -> None:
        self._batches = _plain_errors(loader)
        self.step = step
        """The step of the next batch."""
        self._readers = dict(readers)

    def __next__(self) -> Batch:
        item = next(self._batches)
        self.step += 1
        if isinstance(item, Batch):
            return item
        batch: Batch
        name, state, batch = item
        self._readers[name] = state
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where each stream reader of this process is, JSON-able; empty for map-style data, which need only the step.

        The records of several processes are merged as plain dictionaries.
        """
        return dict(self._readers)


def make_loader(
    dataset: MapDataset | StreamDataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    class_balance: float = 0.0,
    state: Mapping[str, Any] | None = None,
) -> Loader:
    """Batches of the steps from ``start_step`` on, without end.

    Args:
        dataset: Images, tokens or a stream.
        batch_size: Global batch size; this process gets rows ``[rank * b / world_size, (rank + 1) * b / world_size)``.
        seed: Seed of order and augmentation.
        start_step: First step. Map-style data continue bit-identically from it.
        rank: Number of this process.
        world_size: Number of processes.
        num_workers: Processes that decode; 0 decodes in this one.
        class_balance: Within each source, 0 draws images equally often, 1 classes, between them a class of n images by
            ``n ** (1 - class_balance)``.
        state: Streams only: `Loader.state_dict` of an earlier run, merged over its processes.

    Raises:
        ValueError: If the batch size is not a multiple of the number of processes, or classes cannot be balanced.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of the {world_size} processes; change it."
        )
    share = batch_size // world_size
    rows = range(rank * share, (rank + 1) * share)
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "collate_fn": _unchanged,
        "generator": torch.Generator(),  # else the loader draws its base seed from torch's global generator
    }
    groups = class_groups(dataset, class_balance) if class_balance else None
    if isinstance(dataset, StreamDataset):
        fetch = _StreamFetch(dataset, seed, rows, rank, world_size, state or {})
        return Loader(DataLoader(fetch, batch_size=None, **options), start_step, state or {})
    lengths, weights, members = groups or (dataset.lengths, dataset.weights, None)
    sampler = StepSampler(lengths, weights=weights, members=members, batch_size=batch_size, seed=seed)
    batches = _StepBatches(sampler, start_step, rows)
    loader: Any = DataLoader(_Fetch(dataset), batch_sampler=batches, **options)  # type: ignore[arg-type]
    return Loader(loader, start_step, {})


def _plain_errors(loader: Any) -> Iterator[Any]:
    """The items of a data loader; a ValueError of a worker loses the traceback that torch puts into its message."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).strip().rsplit("\n", 1)[-1].removeprefix("ValueError: ")) from error


def _unchanged(batch: Any) -> Any:
    return batch


def eval_batches(
    dataset: MapDataset | StreamDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """One pass over the data in order.

    Batch k holds the indices ``[k * batch_size, (k + 1) * batch_size)`` and belongs whole to process
    ``k % world_size``, so that the number of processes changes no batch. Unreadable images are left out and named in
    ``bad``, so a batch may be shorter than asked, as the last one may.
    """
    if isinstance(dataset, StreamDataset):
        yield from stream_batches(dataset, batch_size, rank=rank, world_size=world_size)
        return
    total = sum(dataset.lengths)
    chunks = [range(first, min(first + batch_size, total)) for first in range(0, total, batch_size)][rank::world_size]
    items: list[list[Item]] = [[(index, (0, index), row) for row, index in enumerate(chunk)] for chunk in chunks]
    yield from in_order(dataset, items, num_workers)


def in_order(dataset: MapDataset, items: Sequence[list[Item]], num_workers: int) -> Iterator[Batch]:
    """The batches of given (index, key, row) lists, without the rows that hold another image than the one asked for."""
    loader: Any = DataLoader(
        _Fetch(dataset),  # type: ignore[arg-type]
        batch_sampler=items,
        num_workers=num_workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )
    for chunk, batch in zip(items, _plain_errors(loader), strict=True):
        keep = batch.index == torch.tensor([index for index, _, _ in chunk])
        yield batch if keep.all() else batch.take(keep)
