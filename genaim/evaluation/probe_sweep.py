"""Probes of every layer of a source of features: which of them know the classes best."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from genaim.core.progress import Progress
from genaim.data import Batch
from genaim.evaluation.features import Features, FeatureSource, extract, layers_at_a_time
from genaim.evaluation.probe_protocols import Protocol, of_patches
from genaim.evaluation.probes import probe_accuracy


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


def sweep(
    source: FeatureSource,
    train: LabelledImages,
    test: LabelledImages,
    num_classes: int,
    probes: Mapping[str, Protocol],
    *,
    name: str,
    progress: Progress,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Probed]:
    """Probes all layers of a source, each protocol on each.

    Features are extracted once, but for those of patches of so many layers that they do not fit in memory together.

    Args:
        source: The source.
        train: Training images.
        test: Images to judge on.
        num_classes: Classes.
        probes: Protocols of frozen features by what they are called.
        name: What the source is called in the progress.
        progress: Where the course is told.
        seed: Seed of the probes.
        device: Where to compute.
        dtype: Autocast type of the features.

    Raises:
        ValueError: If there are no images, or some have no class.
    """
    patches_wanted = any(map(of_patches, probes.values()))
    groups: Sequence[Sequence[str]] = [source.layers]
    if patches_wanted:
        one = next(batch.images for batch in test.batches() if batch.images is not None)
        groups = layers_at_a_time(source, one.to(device), train.total + test.total)
    for group in groups:
        some = source.only(group)
        found: list[Features] = []
        for images, which in ((train, "training"), (test, "test")):
            progress.start(f"{name}: features of the {which} images", 0, images.total)
            found.append(
                extract(
                    some,
                    images.batches(),
                    patches_of=group if patches_wanted else (),
                    device=device,
                    dtype=dtype,
                    report=lambda done: progress.advance(done, {}),
                )
            )
            progress.stop()
        for layer in group:
            for probe, protocol in probes.items():
                known, asked = ((f.patches if of_patches(protocol) else f.pooled)[layer] for f in found)
                accuracy = probe_accuracy(
                    protocol,
                    (known, found[0].labels),
                    (asked, found[1].labels),
                    num_classes,
                    num_heads=source.num_heads,
                    seed=seed,
                    device=device,
                    report=steps_of(progress, f"{name}, layer {layer}, {probe}"),
                )
                progress.stop()
                yield probed(layer, probe, accuracy, len(asked))


def probed(layer: str, probe: str, accuracy: float, count: int) -> Probed:
    """A figure with the standard error of a share of ``count`` images."""
    return Probed(layer, probe, accuracy, math.sqrt(accuracy * (1 - accuracy) / count))


def steps_of(progress: Progress, what: str) -> Callable[[int, int], None]:
    """Tells the steps of a training."""

    def report(step: int, steps: int) -> None:
        if step == 1:
            progress.start(what, 0, steps)
        progress.advance(step, {})

    return report
