"""Features of a data set, extracted once and kept in memory: those of a model's blocks, or the pixels themselves.

A source turns images into one feature map for every layer that it is asked for. Probes of whole images read the pooled
features, of every layer in one pass; the attentive probe reads the features of all patches, which are kept for as many
layers at a time as fit.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from genaim.core.hardware import autocast
from genaim.data import Batch
from genaim.models.encoder import Layers
from genaim.tokenizers.patches import images_to_patches

PATCH_BYTES = 4e9  # of the patch features that are kept at a time


class FeatureModel(Protocol):
    """A model whose blocks give features: an encoder, or a generator that has `features`."""

    config: Any

    def hidden_states(self, images: Tensor) -> Iterator[Tensor]: ...

    def final_norm(self, hidden: Tensor) -> Tensor: ...

    def layers(self, layer: Layers | None) -> list[int]: ...


class FeatureMap(NamedTuple):
    """What a source gives of a batch at one layer."""

    pooled: Tensor
    """One vector for an image, (B, F)."""
    patches: Tensor
    """(B, N, D)."""


class FeatureSource(Protocol):
    """Turns images into features at some layers."""

    layers: Sequence[str]
    """What the layers are called."""
    num_heads: int
    """Attention heads of an attentive probe of its patches."""

    def only(self, layers: Sequence[str]) -> "FeatureSource":
        """The same source of some of its layers."""
        ...

    def __call__(self, images: Tensor) -> Iterator[FeatureMap]:
        """Features of images (B, 3, H, W) in [-1, 1], layer after layer."""
        ...


class ModelFeatures:
    """Outputs of a model's blocks; an image is the mean of its patches."""

    def __init__(self, model: FeatureModel, layers: Sequence[Layers | None] | None = None) -> None:
        """Takes the model, and choices of layers as its `features` takes them.

        None takes every block by itself, the final norm, and what `features` takes by default.

        Raises:
            ValueError: If there is no such layer.
        """
        wanted = [*range(model.config.depth), "norm", None] if layers is None else layers
        self.model, self.num_heads = model, model.config.num_heads
        self._blocks = {layer_name(model, layer): model.layers(layer) for layer in wanted}
        self.layers: Sequence[str] = list(self._blocks)

    def only(self, layers: Sequence[str]) -> "ModelFeatures":
        """The same model's features of some of its layers; blocks behind the last of them are not computed."""
        found = copy.copy(self)
        found._blocks = {layer: self._blocks[layer] for layer in layers}
        found.layers = list(layers)
        return found

    def __call__(self, images: Tensor) -> Iterator[FeatureMap]:
        """Runs the blocks once."""
        last = max(max(blocks, default=self.model.config.depth - 1) for blocks in self._blocks.values())
        hidden = list(islice(self.model.hidden_states(images), last + 1))
        for blocks in self._blocks.values():
            patches = torch.stack([hidden[b] for b in blocks]).mean(0) if blocks else self.model.final_norm(hidden[-1])
            yield FeatureMap(patches.mean(1), patches)


def layer_name(model: FeatureModel, layer: Layers | None) -> str:
    """``3``, ``norm``, or ``mean of 2-5`` and the like; one layer has one name, however it is chosen."""
    blocks = model.layers(layer)
    if len(blocks) < 2:
        return str(blocks[0]) if blocks else "norm"
    consecutive = blocks == list(range(blocks[0], blocks[-1] + 1))
    return f"mean of {f'{blocks[0]}-{blocks[-1]}' if consecutive else ','.join(map(str, blocks))}"


class PixelFeatures:
    """The pixels themselves in [0, 1]: whole images, and their patches."""

    layers: Sequence[str] = ("pixels",)
    num_heads = 1

    def __init__(self, patch_size: int) -> None:
        """Takes the side of a patch."""
        self.patch_size = patch_size

    def only(self, layers: Sequence[str]) -> "PixelFeatures":
        """Itself: it has one layer."""
        return self

    def __call__(self, images: Tensor) -> Iterator[FeatureMap]:
        """One layer; grey images have one channel."""
        if bool((images == images[:, :1]).all()):
            images = images[:, :1]
        pixels = (images + 1) / 2
        yield FeatureMap(pixels.flatten(1), images_to_patches(pixels, self.patch_size))


@dataclass
class Features:
    """Features of a data set, on the CPU in float32."""

    labels: Tensor
    """Classes, (M,) int64."""
    pooled: dict[str, Tensor]
    """By layer, (M, F)."""
    patches: dict[str, Tensor]
    """By layer, (M, N, D); of the layers that were asked for."""


@torch.no_grad()
def extract(
    source: FeatureSource,
    batches: Iterable[Batch],
    *,
    patches_of: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    report: Callable[[int], None] | None = None,
) -> Features:
    """Features of all images, each a function of its own image; the batch size moves them by rounding alone.

    Args:
        source: A source whose model is in evaluation mode, on the device.
        batches: Images with labels.
        patches_of: Layers whose patches are kept too.
        device: Where to compute.
        dtype: Autocast type; features are kept in float32.
        report: Told after every batch how many images are done.

    Raises:
        ValueError: If there are no images, or an image has no label.
    """
    labels: list[Tensor] = []
    pooled: dict[str, list[Tensor]] = {layer: [] for layer in source.layers}
    patches: dict[str, list[Tensor]] = {layer: [] for layer in patches_of}
    done = 0
    for batch in batches:
        if len(batch):  # else every image of it was unreadable
            assert batch.images is not None
            with autocast(torch.device(device), dtype):
                for layer, found in zip(source.layers, source(batch.images.to(device)), strict=True):
                    pooled[layer].append(found.pooled.float().cpu())
                    if layer in patches:
                        patches[layer].append(found.patches.float().cpu())
            labels.append(batch.labels)
            done += len(batch)
        if report is not None:
            report(done)
    if not done:
        raise ValueError("there are no images to extract features of; give at least one.")
    found_labels = torch.cat(labels)
    if bool((found_labels < 0).any()):
        raise ValueError(
            f"{int((found_labels < 0).sum())} of {done} images have no class to probe for; use data with classes."
        )
    return Features(
        found_labels,
        {layer: torch.cat(parts) for layer, parts in pooled.items()},
        {layer: torch.cat(parts) for layer, parts in patches.items()},
    )


def untrained(model: nn.Module, seed: int = 0) -> Any:
    """A model of the same architecture with fresh weights, in evaluation mode; a generator keeps its tokenizer.

    The first blocks of a generator with AdaLN start as the identity, so its features are close to those of its patches.
    """
    build: Any = type(model)
    tokenizer = [model.tokenizer] if hasattr(model, "tokenizer") else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(model.config, *tokenizer).eval()


def layers_at_a_time(source: FeatureSource, images: Tensor, count: int) -> list[list[str]]:
    """The layers in groups whose patch features of ``count`` images fit in memory together; one at least.

    Args:
        source: The source.
        images: One image or more of the data, (B, 3, H, W), to see the size of the features.
        count: Images of all data sets together.
    """
    with torch.no_grad():
        found = next(iter(source(images[:1])))
    size = found.patches.numel() * 4 * count
    together = max(1, int(PATCH_BYTES // size))
    return [list(source.layers[first : first + together]) for first in range(0, len(source.layers), together)]
