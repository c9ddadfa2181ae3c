"""Inpainting, outpainting and class-conditional editing: completing the tokens of an image, by any model.

A token is known if its area holds no hidden pixel; of coarse scales half suffices (`Tokenizer.known_tokens`). Its
encoder looks further, but sees the smooth fill of the hole and never what is under the mask. To leave out such tokens
too (``grow=1``) costs more context than the fill spoils: it was measured 2.3 dB worse in the holes of emoji.

What a model makes of known tokens is its own: masked models and causal models trained known-first see them from the
first step, scales and plain raster models in their turn (`GenerativeModel.context`).
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.models import CausalGenerator, GenerativeModel, Given
from genaim.pretrained.names import bundled_generators
from samplers.canvas import FEATHER, WHOLE_UP_TO, Window, close_seam, editable, fill_holes, paste, to_field, to_pixels
from samplers.consistency import resize
from samplers.generate import Sampling, generate

Mask = Image.Image | np.ndarray | Tensor
"""What to paint, of the picture's size: white (128 and more) and not transparent, or True."""

SKETCH_DRAW = 1 << 40  # the draws that choose what an edit keeps; decoding counts its own from 0


@torch.no_grad()
def complete(
    model: GenerativeModel,
    images: Tensor,
    keep: Tensor,
    labels: Tensor,
    *,
    strength: float = 1.0,
    first_index: int = 0,
    grow: int = 0,
    **sampling: Unpack[Sampling],
) -> Tensor:
    """Paints the holes of images of the model's size.

    Args:
        model: Any genaim generator.
        images: (B, 3, H, W) in [-1, 1], or one for all labels, (1, 3, H, W); with full strength, hidden pixels are not
            looked at.
        keep: Pixels that stay, (B, H, W) or (1, H, W) bool.
        labels: Classes, (B,) int64; ``num_classes`` is the null class.
        strength: Below 1, a sketch of what is under the mask is kept: with scales the first of them, otherwise a random
            share of the tokens (`Order.sketch`).
        first_index: Index of the first image, which keys its noise.
        grow: Tokens around those that hold hidden pixels which are painted with them.
        sampling: As in `generate`.

    Returns:
        (B, 3, H, W) in [-1, 1]; kept pixels as they were.

    Raises:
        ValueError: If an argument does not fit the model or is out of its range.

    Warns:
        UserWarning: If the model sees only what lies before a token in its order.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], not {strength}; 1 paints anew, 0 keeps all tokens.")
    if model.low_res_prefix is not None:
        raise ValueError(f"the model enlarges pictures and cannot complete them; take {', '.join(completers())}.")
    if isinstance(model, CausalGenerator) and model.config.known_first == 0:
        warnings.warn(
            "the model was trained in its plain order: what it paints sees the known tokens before it on the path, and "
            "none behind it; train with model.known_first above 0 to show it all of them.",
            stacklevel=2,
        )
    tokenizer = model.eval().tokenizer
    images, keep = images.to(model.device), keep.to(model.device)
    known = tokenizer.known_tokens(keep, grow)
    seen = images if strength < 1 else fill_holes(images, keep)
    if strength < 1:
        index = torch.arange(first_index, first_index + len(labels), device=model.device)
        noise = NoiseSource(sampling.get("seed", 0), index, draw=SKETCH_DRAW)
        known = known | model.order.sketch(1 - strength, noise).to(known.device)
    tokens = torch.cat([tokenizer.encode(part) for part in seen.split(max(1, sampling.get("batch_size") or len(seen)))])
    tokens, known = (rows.expand(len(labels), *rows.shape[1:]) if len(rows) == 1 else rows for rows in (tokens, known))
    given = Given(tokens, known)
    painted = generate(model, labels, given=given, first_index=first_index, **sampling)
    return close_seam(painted, images, keep, max(1, images.shape[-1] // FEATHER))


def inpaint(
    model: GenerativeModel,
    image: Image.Image,
    mask: Mask,
    label: int | None = None,
    *,
    n: int = 1,
    strength: float = 1.0,
    first_index: int = 0,
    **sampling: Unpack[Sampling],
) -> list[Image.Image]:
    """Paints the masked part of a picture of any size, several times.

    A picture of up to four times the model's side is seen whole; of a larger one, a window around the hole. Result i
    of a seed is the same whatever ``n`` is.

    Args:
        model: Any genaim generator.
        image: The picture; palettes become RGB or RGBA, bilevel becomes grey, all else keeps its mode and its alpha.
        mask: What to paint.
        label: Class to paint, in [0, num_classes); None is the null class, without guidance.
        n: Number of results.
        strength: Below 1, the results keep a sketch of what is under the mask, see `complete`.
        first_index: Index of the first result, which keys its noise.
        sampling: As in `generate`.

    Returns:
        Pictures that equal the given one bit for bit outside the mask.

    Raises:
        ValueError: If the mask is empty or of another size, the picture cannot be edited, or an option does not fit.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more results, not {n}.")
    image = editable(image)
    hidden = to_hidden(mask, image)
    return _paint(model, [image], hidden, label, n, strength=strength, first_index=first_index, **sampling)


def _paint(
    model: GenerativeModel,
    images: Sequence[Image.Image],
    hidden: Tensor,
    label: int | None,
    n: int,
    *,
    strength: float,
    first_index: int,
    unseen: np.ndarray | None = None,
    **sampling: Unpack[Sampling],
) -> list[Image.Image]:
    """`inpaint` of n pictures of one size, or of one n times, where ``hidden`` (H, W) says.

    ``unseen`` (H, W) are pixels that are neither painted nor looked at.
    """
    labels = torch.full((n,), label_or_null(model, label))
    sampling["guidance_scale"] = guidance_of(label, sampling.get("guidance_scale"))
    field, window = model.tokenizer.image_size, Window.around(hidden, model.tokenizer.image_size)
    there = torch.ones_like(hidden) if unseen is None else ~torch.from_numpy(unseen)
    original = torch.stack([window.crop(to_pixels(image)) for image in images])
    keep = window.crop(there & ~hidden)[None]
    known = window.crop(there)[None] if strength < 1 else keep  # nothing is known beyond the picture
    small, small_keep = to_field(fill_holes(original, known), keep, field)
    painted = complete(model, small, small_keep, labels, strength=strength, first_index=first_index, **sampling)
    if window.side != field:
        painted = resize(painted, window.side, window.side).clamp(-1, 1)
        painted = close_seam(painted, original.to(painted.device), keep.to(painted.device), window.side // FEATHER)
    height, width = hidden.shape
    results = [window.spread(result, height, width) for result in painted.cpu()]
    before = images if len(images) == n else [images[0]] * n
    return [paste(image, result, hidden) for image, result in zip(before, results, strict=True)]


def edit(
    model: GenerativeModel,
    image: Image.Image,
    label: int,
    mask: Mask | None = None,
    *,
    strength: float = 0.5,
    n: int = 1,
    first_index: int = 0,
    **sampling: Unpack[Sampling],
) -> list[Image.Image]:
    """Turns a picture, or the masked part of it, into another class.

    Args:
        model: Any genaim generator with classes.
        image: As in `inpaint`.
        label: The new class, in [0, num_classes).
        mask: Where to change the picture; None is everywhere.
        strength: 1 paints anew; below, a sketch of the picture is kept: its coarse scales (VAR) or a share of its
            tokens; 0 keeps all, and the picture comes back as the tokenizer reconstructs it.
        n: Number of results.
        first_index: Index of the first result, which keys its noise.
        sampling: As in `generate`.

    Returns:
        Pictures that equal the given one bit for bit outside the mask.

    Raises:
        ValueError: As `inpaint`, and if the model has no classes.
    """
    if not model.config.num_classes:
        raise ValueError("the model has no classes to turn a picture into; take a class-conditional model, or inpaint.")
    mask = np.ones((image.height, image.width), dtype=bool) if mask is None else mask
    return inpaint(model, image, mask, label, n=n, strength=strength, first_index=first_index, **sampling)


def outpaint(
    model: GenerativeModel,
    image: Image.Image,
    label: int | None = None,
    *,
    left: int = 0,
    top: int = 0,
    right: int = 0,
    bottom: int = 0,
    n: int = 1,
    first_index: int = 0,
    **sampling: Unpack[Sampling],
) -> list[Image.Image]:
    """Continues a picture beyond its sides.

    In steps that add at most a quarter of the shorter side to each side, so that every step sees about as much of the
    picture as it paints. A picture of more than four times the model's side is continued piece by piece instead, each
    half as large as the model's side and seen in a window of that side, so that no detail is lost.

    Args:
        model: Any genaim generator.
        image: As in `inpaint`; new pixels are opaque.
        label: As in `inpaint`.
        left: Pixels to add there.
        top: Pixels to add there.
        right: Pixels to add there.
        bottom: Pixels to add there.
        n: Number of results.
        first_index: Index of the first result, which keys its noise.
        sampling: As in `generate`.

    Returns:
        Larger pictures that hold the given one bit for bit.

    Raises:
        ValueError: As `inpaint`, and if nothing is added or a number is negative.
    """
    sides = [left, top, right, bottom]
    if min(sides) < 0 or max(sides) == 0:
        raise ValueError(
            f"left, top, right, bottom are {sides}; give pixels to add, 0 or more each and more than 0 for one."
        )
    if n < 1:
        raise ValueError(f"n must be 1 or more results, not {n}.")
    image = editable(image)
    results, piece = [image] * n, 0
    for added, side in stages(image.size, sides, model.tokenizer.image_size):
        larger, new = extend(results[0], *added)
        results = [larger, *(extend(result, *added)[0] for result in results[1:])]
        for mask, unseen in pieces(new, side):
            results = _paint(
                model,
                results,
                to_hidden(mask, larger),
                label,
                n,
                strength=1.0,
                first_index=first_index + (piece << 20),  # every piece has noise of its own
                unseen=unseen,
                **sampling,
            )
            piece += 1
    return results


def stages(size: tuple[int, int], sides: Sequence[int], field: int) -> Iterator[tuple[list[int], int]]:
    """The steps of an outpainting.

    Args:
        size: Width and height of the picture.
        sides: Pixels to add at the left, top, right and bottom.
        field: Side of the model's images.

    Yields:
        Pixels that a step adds to each side, and the side of the pieces that it paints.
    """
    (width, height), left = size, list(sides)
    while max(left):
        large = max(width, height) > WHOLE_UP_TO * field
        added = [min(side, field // 2 if large else max(1, min(width, height) // 4)) for side in left]
        width, height = width + added[0] + added[2], height + added[1] + added[3]
        left = [side - new for side, new in zip(left, added, strict=True)]
        yield added, field // 2 if large else max(width, height)


def count_pieces(size: tuple[int, int], sides: Sequence[int], field: int) -> int:
    """Number of pieces that an outpainting paints for each result; arguments as of `stages`."""

    def old(start: int, end: int, length: int, side: int) -> int:
        """Squares along an axis that lie within [start, end)."""
        return sum(start <= x and min(x + side, length) <= end for x in range(0, length, side))

    (width, height), total = size, 0
    for (left, top, right, bottom), side in stages(size, sides, field):
        columns, rows = (left, left + width, left + width + right), (top, top + height, top + height + bottom)
        width, height = columns[-1], rows[-1]
        total += math.ceil(width / side) * math.ceil(height / side) - old(*columns, side) * old(*rows, side)
    return total


def pieces(new: np.ndarray, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts what is to be painted (H, W) into squares, those that touch most of the picture first.

    Yields:
        What to paint, and what is not painted yet besides, (H, W) bool each.
    """
    left, (height, width) = new.copy(), new.shape
    squares = [(slice(y, y + side), slice(x, x + side)) for y in range(0, height, side) for x in range(0, width, side)]
    squares = [square for square in squares if new[square].any()]
    while squares:
        squares.sort(key=lambda square: _unknown_around(left, *square))
        mask = np.zeros_like(new)
        square = squares.pop(0)
        mask[square] = new[square]
        left[square] = False
        yield mask, left.copy()


def _unknown_around(left: np.ndarray, rows: slice, columns: slice) -> float:
    """Share of what is not there yet in a square and as much around it."""
    reach = (rows.stop - rows.start) // 2
    part = left[max(0, rows.start - reach) : rows.stop + reach, max(0, columns.start - reach) : columns.stop + reach]
    return float(part.mean())


def extend(image: Image.Image, left: int, top: int, right: int, bottom: int) -> tuple[Image.Image, np.ndarray]:
    """A larger canvas with the picture in its place, opaque where it is new, and where that is, (H, W) bool."""
    size = (image.width + left + right, image.height + top + bottom)
    ground = tuple(255 if band == "A" else 0 for band in image.getbands())
    larger = Image.new(image.mode, size, ground if len(ground) > 1 else ground[0])
    larger.info.update(image.info)  # the colour profile
    larger.paste(image, (left, top))
    mask = np.ones((size[1], size[0]), dtype=bool)
    mask[top : top + image.height, left : left + image.width] = False
    return larger, mask


def to_hidden(mask: Mask, image: Image.Image) -> Tensor:
    """A mask as (H, W) bool, True where to paint.

    Raises:
        ValueError: If it is empty, of another size than the picture, or covers transparent pixels only.
    """
    if isinstance(mask, Image.Image):
        grey = editable(mask).convert("RGBA").convert("LA")
        mask = np.all(np.asarray(grey) >= 128, axis=-1)
    hidden = mask.cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask))
    if hidden.dtype != torch.bool or hidden.dim() != 2:
        raise ValueError(f"the mask is {hidden.dtype} {tuple(hidden.shape)}; give an image, or a (H, W) bool array.")
    if tuple(hidden.shape) != (image.height, image.width):
        raise ValueError(
            f"the mask is {hidden.shape[1]}x{hidden.shape[0]}, but the picture {image.width}x{image.height}; make "
            "them equal."
        )
    if not hidden.any():
        raise ValueError("the mask is empty: nothing is to be painted; white marks what is.")
    if "A" in image.mode and not np.asarray(image.getchannel("A"))[hidden.numpy()].any():
        raise ValueError(
            "the mask covers transparent pixels only, where paint cannot be seen; lay the picture on a ground."
        )
    return hidden


def label_or_null(model: GenerativeModel, label: int | None) -> int:
    """A class that the model has, or its null class for None.

    Raises:
        ValueError: If there is no such class.
    """
    classes = model.config.num_classes
    if label is None:
        return classes
    if not 0 <= label < classes:
        raise ValueError(f"class {label} is not in 0 to {classes - 1}." if classes else "the model has no classes.")
    return label


def guidance_of(label: int | None, guidance_scale: float | None) -> float | None:
    """The guidance scale of a label: off for None, where both branches would be the same.

    Raises:
        ValueError: If guidance is asked for and there is no label.
    """
    if label is not None:
        return guidance_scale
    if guidance_scale not in (None, 1.0):
        raise ValueError(f"guidance {guidance_scale:g} needs a class to be guided to; give one, or leave guidance out.")
    return 1.0


def completers() -> list[str]:
    """Names of the bundled generators that can complete pictures."""
    return [name for name, model in bundled_generators().items() if not model.get("low_res")]
