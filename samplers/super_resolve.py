"""Super-resolution: pictures enlarged by the models that can.

A model trained with ``low_res`` is given the low-resolution image as a prefix. Scales (VAR) need no training for it:
the image, enlarged, fixes the first scales, and the last one is drawn. Pictures larger than a model's field are
enlarged in overlapping tiles.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genaim.data.transforms import levels_to_tensor, tensor_to_levels, to_rgb
from genaim.models import VAR, GenerativeModel, Given
from genaim.pretrained.names import bundled_generators
from samplers.canvas import editable, in_mode, to_pixels, to_share
from samplers.consistency import project, resize
from samplers.generate import Sampling, generate
from samplers.inpaint import guidance_of, label_or_null

FACTOR = 4  # of models that can choose it
TILES = 16  # computed together when no batch size is asked for; on a CPU, 32 and 64 took 15% longer
MAX_PIXELS = 4096 * 4096  # of a result; each takes some 100 bytes of memory
CONSISTENT = (1, 0.999, 4)  # levels that a share of all values is off by at most, and levels for all


@torch.no_grad()
def enlarge(
    model: GenerativeModel,
    low_res: Tensor,
    labels: Tensor,
    *,
    first_index: int = 0,
    consistent: bool = True,
    **sampling: Unpack[Sampling],
) -> Tensor:
    """Enlarges images to the size that a model makes.

    Scales: of the enlarged image's tokens all but those of the last scale are given. With fewer the image is lost: at
    factor 4, the first 3, 4 and all 5 scales of emoji-var gave 16.4, 19.3 and 22.0 dB on 16 held-out emoji, and 23.9,
    24.4 and 24.4 dB once made consistent; with all, nothing is drawn, and the result is less sharp than the emoji.

    Args:
        model: A generator that is conditioned on such images, or a VAR.
        low_res: (B, 3, s, s) in [-1, 1]; s divides the side of the model's images.
        labels: Classes, (B,) int64; ``num_classes`` is the null class.
        first_index: Index of the first image, which keys its noise.
        consistent: Whether the results are made to give ``low_res`` again when they are reduced, or come close to it
            where no image does, see `project`.
        sampling: As in `generate`.

    Returns:
        (B, 3, H, W) in [-1, 1].

    Raises:
        ValueError: If the model cannot enlarge, or an argument does not fit it.
    """
    size, side = model.tokenizer.image_size, low_res.shape[-1]
    if tuple(low_res.shape[1:]) != (3, side, side) or size % side:
        raise ValueError(f"low_res must be (B, 3, s, s) with s a divisor of {size}, not {tuple(low_res.shape)}.")
    check_factor(model, size // side)
    low_res = low_res.to(model.device)
    if model.low_res_prefix is not None:
        images = generate(model, labels, low_res=low_res, first_index=first_index, **sampling)
    else:
        assert isinstance(model, VAR)
        tokens = model.eval().tokenizer.encode(resize(low_res, size, size).clamp(-1, 1))
        known = model.order.step_ids().to(tokens.device) < len(model.order.sizes) - 1
        given = Given(tokens, known.expand(len(tokens), -1))
        images = generate(model, labels, given=given, first_index=first_index, **sampling)
    return project(images, low_res) if consistent else images


@torch.no_grad()
def super_resolve(
    model: GenerativeModel,
    image: Image.Image,
    factor: int | None = None,
    label: int | None = None,
    *,
    overlap: int | None = None,
    first_index: int = 0,
    consistent: bool = True,
    report: Callable[[int, int], None] | None = None,
    **sampling: Unpack[Sampling],
) -> Image.Image:
    """Enlarges a picture of any size.

    1. The picture is cut into squares of the model's low-resolution side, evenly spread over it, which overlap. It is
       first continued by reflection: to one square, or where it is larger by half the overlap, since at the border of
       a square a model may paint the border of an image.
    2. Each is enlarged by itself, with noise of its own.
    3. In the overlaps the results are blended, and the whole is made consistent with the picture.

    Transparent pixels are enlarged on white, and taken off it again by the alpha, which is enlarged by bicubic and made
    consistent too.

    Models see the values of pixels as they are, whatever their colour profile (ICC) says, and a result has the profile
    of the picture. Only that of CMYK is left out, whose inks are mixed anew.

    Made consistent, a result, reduced by PIL's bicubic resize, is the given picture: 99.9% of the values to 1 level of
    8 bits, and all to 4. So it is with photographs, and with what PIL's bicubic filter reduced. Hard edges close to
    black or white are reductions of no image; with them a result comes about as close as least squares do, and a
    warning tells how close (`project` has figures).

    Args:
        model: A generator that is conditioned on low-resolution images, or a VAR.
        image: The picture; palettes become RGB or RGBA, bilevel becomes grey, all else keeps its mode.
        factor: A model trained for it has one factor; VAR takes any that divides the side of its images, and 4 when
            none is given.
        label: Class of the picture, in [0, num_classes); None is the null class, which models that are conditioned on
            low-resolution images have met in training (`GeneratorConfig.label_dropout`).
        overlap: Pixels of the given picture that neighbouring tiles share at least; None takes half a tile. Seams are
            not seen with less either, but every pixel is then the mean of fewer draws: Set5 by emoji-var came out at
            28.48 dB with 8 of 16 pixels, 28.43 with 7, 28.24 with 4 and 28.03 with 2.
        first_index: Index of the first tile, which keys its noise.
        consistent: Whether the result is made consistent.
        report: Told after every batch how many tiles are done, and of how many.
        sampling: As in `generate`; the batch size is in tiles.

    Returns:
        A picture of ``factor`` times the size.

    Raises:
        ValueError: If the model cannot enlarge by the factor, the picture cannot be read or is too large, or an option
            does not fit.
    """
    factor = check_factor(model, factor)
    image = editable(image)
    _check_size(image, factor)
    side = model.tokenizer.image_size // factor
    overlap = side // 2 if overlap is None else overlap
    if not 0 <= overlap < side:
        raise ValueError(f"overlap must be 0 or more and less than the tile's {side} pixels, not {overlap}.")
    if label is None and model.low_res_prefix is None:
        sampling["guidance_scale"] = guidance_of(label, sampling.get("guidance_scale"))
    pixels = to_pixels(image)
    tiles = Tiles.over(pixels, side, overlap)
    null = label_or_null(model, label)
    size = sampling.get("batch_size") or TILES
    results = []
    for first in range(0, len(tiles.corners), size):
        low_res = tiles.cut(first, first + size)
        labels = torch.full((len(low_res),), null)
        results.append(
            enlarge(model, low_res, labels, first_index=first_index + first, consistent=False, **sampling).cpu()
        )
        if report is not None:
            report(min(first + size, len(tiles.corners)), len(tiles.corners))
    enlarged = tiles.blend(torch.cat(results), factor)[None]
    alpha = _enlarged_alpha(image, factor, consistent)
    if consistent:
        enlarged = project(enlarged, pixels[None], darkest=None if alpha is None else 1 - 2 * to_share(alpha))
    result = in_mode(enlarged[0], image.mode, alpha)
    if "icc_profile" in image.info and image.mode != "CMYK":
        result.info["icc_profile"] = image.info["icc_profile"]
    if consistent:
        _warn_of_difference(result, image)
    return result


def check_factor(model: GenerativeModel, factor: int | None) -> int:
    """The factor by which a model enlarges; None takes the model's own, or 4.

    Raises:
        ValueError: If the model cannot enlarge, or not by this factor.
    """
    size = model.tokenizer.image_size
    if model.low_res_prefix is not None:
        own = size // model.low_res_prefix.side
        if factor not in (None, own):
            raise ValueError(
                f"the model enlarges by {own}, not by {factor}; leave factor out, or take a model with scales, such as "
                "emoji-var, which enlarges by any factor of its side."
            )
        return own
    if not isinstance(model, VAR):
        raise ValueError(
            "the model cannot enlarge pictures: it has no scales, and was not trained with model.low_res to be given "
            f"them; take {', '.join(enlargers())}, or train one so."
        )
    factor = FACTOR if factor is None else factor
    allowed = [f for f in range(2, size + 1) if size % f == 0]
    if factor not in allowed:
        raise ValueError(f"factor {factor} does not divide the model's {size} pixels; use one of {allowed}.")
    return factor


def enlargers() -> list[str]:
    """Names of the bundled models that can enlarge pictures."""
    return [name for name, model in bundled_generators().items() if model["kind"] == "var" or model.get("low_res")]


@dataclass(frozen=True)
class Tiles:
    """Squares that cover a picture and overlap, in raster order."""

    pixels: Tensor
    """The picture, continued by reflection, (3, h, w)."""
    side: int
    """Pixels of a square's side."""
    overlap: int
    """Least number of pixels that neighbours share."""
    corners: list[tuple[int, int]]
    """Top and left of every square."""
    inside: tuple[int, int, int, int]
    """Top, left, height and width of the picture itself."""

    @classmethod
    def over(cls, pixels: Tensor, side: int, overlap: int) -> "Tiles":
        """Squares over a picture (3, H, W); more overlap than asked for where they would not come out even."""
        height, width = pixels.shape[1:]
        above, before = (_margins(length, side, overlap) for length in (height, width))
        padded = pixels[:, _reflected(height, above)][:, :, _reflected(width, before)]
        tops, lefts = (_starts(length, side, overlap) for length in padded.shape[1:])
        corners = [(top, left) for top in tops for left in lefts]
        return cls(padded, side, overlap, corners, (above[0], before[0], height, width))

    def cut(self, first: int, last: int) -> Tensor:
        """Squares ``first`` to ``last``, (n, 3, side, side)."""
        s = self.side
        return torch.stack([self.pixels[:, y : y + s, x : x + s] for y, x in self.corners[first:last]])

    def blend(self, tiles: Tensor, factor: int) -> Tensor:
        """The picture of enlarged squares, (n, 3, f side, f side) to (3, f H, f W).

        A square counts less towards its borders, as a raised cosine over the overlap: what a model paints at the very
        border is the least supported.
        """
        side = factor * self.side
        middle = torch.arange(side) + 0.5
        inside = (torch.minimum(middle, side - middle) / max(factor * self.overlap, 1)).clamp_max(1)
        ramp = torch.sin(math.pi / 2 * inside).square()
        weight = ramp[:, None] * ramp
        total = self.pixels.new_zeros(4, *(factor * length for length in self.pixels.shape[1:]))
        for tile, (top, left) in zip(tiles, self.corners, strict=True):
            y, x = factor * top, factor * left
            total[:3, y : y + side, x : x + side] += weight * tile
            total[3, y : y + side, x : x + side] += weight
        top, left, height, width = (factor * length for length in self.inside)
        return (total[:3] / total[3])[:, top : top + height, left : left + width]


def _margins(length: int, side: int, overlap: int) -> tuple[int, int]:
    """Pixels by which a picture is continued before and behind."""
    missing = side - length
    return (missing // 2, missing - missing // 2) if missing >= 0 else (overlap // 2, overlap // 2)


def _reflected(length: int, margins: tuple[int, int]) -> Tensor:
    """Indices 0 to ``length``, and on by reflection on both sides."""
    return torch.from_numpy(np.pad(np.arange(length), margins, mode="symmetric"))


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where squares begin that cover ``length`` pixels, evenly spread."""
    count = 1 + math.ceil(max(0, length - side) / (side - overlap))
    return [round(start) for start in np.linspace(0, length - side, count).tolist()]


def _check_size(image: Image.Image, factor: int) -> None:
    width, height = factor * image.width, factor * image.height
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the result would have {width}x{height} pixels, more than {MAX_PIXELS:,} in all; cut out a part of the "
            "picture."
        )


def _enlarged_alpha(image: Image.Image, factor: int, consistent: bool) -> Image.Image | None:
    """The alpha of a picture, enlarged, if it has any."""
    if "A" not in image.mode:
        return None
    alpha = image.getchannel("A")
    large = alpha.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    if not consistent:
        return large
    tensors = (levels_to_tensor(np.asarray(plane))[None, None] for plane in (large, alpha))
    return Image.fromarray(tensor_to_levels(project(*tensors))[0, 0].numpy())


def _warn_of_difference(result: Image.Image, image: Image.Image) -> None:
    """Warns if a result, reduced, is not the given picture, in its colours on white or in its alpha."""
    errors = []
    for large, small in zip(_planes(result), _planes(image), strict=True):
        reduced = large.resize(small.size, Image.Resampling.BICUBIC)
        errors.append(np.abs(np.asarray(reduced, dtype=int) - np.asarray(small)).ravel())
    error = np.concatenate(errors)
    levels, share, most = CONSISTENT
    beyond = (error > levels).mean()
    if beyond > 1 - share or error.max() > most:
        warnings.warn(
            f"the result, reduced again, is up to {error.max()} levels of 8 bits from the picture ({beyond:.1%} of the "
            f"values more than {levels}); pictures with hard edges close to black or white are reductions of no image.",
            stacklevel=4,  # past this function, super_resolve and no_grad
        )


def _planes(image: Image.Image) -> list[Image.Image]:
    """Colours on white, and alpha if there is any."""
    return [to_rgb(image), *([image.getchannel("A")] if "A" in image.mode else [])]
