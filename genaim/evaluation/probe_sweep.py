"""Probes of every layer of a source of features: which of them know the classes best."""

import itertools
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from genaim.core.progress import Progress
from genaim.data import Batch
from genaim.evaluation.features import Features, FeatureSource, extract, layers_at_a_time
from genaim.evaluation.probe_protocols import Protocol, of_patches
from genaim.evaluation.probe_training import steps_of
from genaim.evaluation.probes import Scores, chosen, learning_rates, probe_scores


class LabelledImages(NamedTuple):
    """A data set that can be read several times."""

    batches: Callable[[], Iterable[Batch]]
    """Opens it."""
    total: int
    """Images in it."""


class Probed(NamedTuple):
    """What one probe found."""

    layer: str
    """The layer whose features it read."""
    probe: str
    """Its protocol."""
    accuracy: float
    """Share of the test images whose class it said."""
    standard_error: float
    """Of the accuracy, from the number of test images."""


class Unit(NamedTuple):
    """What is measured in one go, and kept: an interruption loses no more."""

    layer: str
    """The layer whose features are read."""
    probe: str
    """The protocol's name."""
    lr: float | None
    """The learning rate; None of protocols that have none."""


class Finished(typing.Protocol):
    """The scores of the units that are measured, such as a dict."""

    def __contains__(self, unit: Any, /) -> bool: ...

    def __getitem__(self, unit: Unit, /) -> Scores: ...

    def __setitem__(self, unit: Unit, scores: Scores, /) -> None: ...


def units(layer: str, probe: str, protocol: Protocol) -> list[Unit]:
    """One for every learning rate of a protocol."""
    return [Unit(layer, probe, lr) for lr in learning_rates(protocol)]


def sweep(
    source: FeatureSource,
    train: LabelledImages,
    test: LabelledImages,
    num_classes: int,
    probes: Mapping[str, Protocol],
    *,
    name: str,
    progress: Progress,
    finished: Finished | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Probed]:
    """Probes all layers of a source, each protocol on each.

    Features are extracted once, but for those of patches of so many layers that they do not fit in memory together.
    Layers all of whose units are finished are not extracted.

    Args:
        source: The source.
        train: Training images.
        test: Images to judge on.
        num_classes: Classes.
        probes: Protocols of frozen features by what they are called.
        name: What the source is called in the progress.
        progress: Where the course is told.
        finished: What the same sweep has measured before; what is missing is measured and put there.
        seed: Seed of the probes.
        device: Where to compute.
        dtype: Autocast type of the features.

    Raises:
        ValueError: If there are no images, or some have no class.
    """
    finished = {} if finished is None else finished
    patches_wanted = any(map(of_patches, probes.values()))
    groups: Sequence[Sequence[str]] = [source.layers]
    if patches_wanted:
        one = next(batch.images for batch in test.batches() if batch.images is not None)
        groups = layers_at_a_time(source, one.to(device), train.total + test.total)
    for group in groups:
        missing = [x for x in group if any(u not in finished for p in probes for u in units(x, p, probes[p]))]
        found = [
            _features(source.only(missing), images, what, patches_wanted, progress, device=device, dtype=dtype)
            for images, what in ((train, f"{name}, training images"), (test, f"{name}, test images"))
            if missing
        ]
        for layer, (probe, protocol) in itertools.product(group, probes.items()):
            for unit in (u for u in units(layer, probe, protocol) if u not in finished):
                known, asked = (((f.patches if of_patches(protocol) else f.pooled)[layer], f.labels) for f in found)
                finished[unit] = probe_scores(
                    protocol,
                    known,
                    asked,
                    num_classes,
                    lr=unit.lr,
                    num_heads=source.num_heads,
                    seed=seed,
                    device=device,
                    report=steps_of(progress, in_words(name, unit)),
                )
                progress.stop()
            yield probed(layer, probe, chosen(finished[unit] for unit in units(layer, probe, protocol)))


def _features(
    source: FeatureSource, images: LabelledImages, what: str, patches: bool, progress: Progress, **options: Any
) -> Features:
    """Features of all layers of a source, with those of patches if they are wanted."""
    progress.start(f"features of {what}", 0, images.total)
    patches_of = source.layers if patches else ()
    report = partial(progress.advance, figures={})
    found = extract(source, images.batches(), patches_of=patches_of, report=report, **options)
    progress.stop()
    return found


def in_words(name: str, unit: Unit) -> str:
    """A unit for the progress."""
    rate = "" if unit.lr is None else f", learning rate {unit.lr:g}"
    return f"{name}, layer {unit.layer}, {unit.probe}{rate}"


def probed(layer: str, probe: str, scores: Scores) -> Probed:
    """A figure with the standard error of a share of so many images."""
    share = scores.accuracy
    return Probed(layer, probe, share, math.sqrt(share * (1 - share) / scores.images))
