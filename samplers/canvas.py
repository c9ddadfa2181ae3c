"""The square that a model sees of a picture of any size, and how what it paints comes back into the picture.

Hidden pixels never reach a model: holes are filled from their surroundings before anything is resized or encoded.
Outside the hole a picture stays as it is, bit for bit; the seam is closed inside the hole. So its colour profile (ICC)
stays too, and models see the values of its pixels as they are.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genaim.data.transforms import levels_to_tensor, tensor_to_pil, to_rgb
from samplers.consistency import resize

WHOLE_UP_TO = 4  # a picture of up to this many times the model's side is seen whole
CONTEXT = 2  # else the window is this many times the hole
FEATHER = 16  # the seam is closed over this part of the window's side

PASTED_MODES = ("RGB", "RGBA", "L", "LA", "CMYK")


@dataclass(frozen=True)
class Window:
    """A square of a picture, in pixels; it may reach beyond the picture."""

    left: int
    top: int
    side: int

    @classmethod
    def around(cls, hidden: Tensor, field: int) -> "Window":
        """The window for a hole.

        The whole picture where it is at most `WHOLE_UP_TO` times as large as the model's side; else a square of
        `CONTEXT` times the hole, at least the model's side, moved into the picture as far as it fits.

        Args:
            hidden: Pixels to paint, (H, W) bool; at least one.
            field: Side of the model's images.
        """
        rows, columns = hidden.any(1).nonzero().flatten(), hidden.any(0).nonzero().flatten()
        (top, bottom), (left, right) = ((int(x[0]), int(x[-1]) + 1) for x in (rows, columns))
        height, width = hidden.shape
        side = max(height, width)
        if side > WHOLE_UP_TO * field:
            side = min(side, max(field, CONTEXT * max(bottom - top, right - left)))
        return cls(_place(left, right, side, width), _place(top, bottom, side, height), side)

    def crop(self, pixels: Tensor) -> Tensor:
        """The window of (..., H, W); zeros or False beyond the picture."""
        height, width = pixels.shape[-2:]
        inside = pixels[
            ...,
            max(self.top, 0) : min(self.top + self.side, height),
            max(self.left, 0) : min(self.left + self.side, width),
        ]
        left, top = max(-self.left, 0), max(-self.top, 0)
        padding = (left, self.side - left - inside.shape[-1], top, self.side - top - inside.shape[-2])
        return F.pad(inside, padding)

    def spread(self, pixels: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `crop`: a picture (..., height, width) with the window in its place and zeros elsewhere."""
        return Window(-self.left, -self.top, max(height, width)).crop(pixels)[..., :height, :width]


def _place(start: int, end: int, side: int, size: int) -> int:
    """Where a window of ``side`` begins, centred on [start, end) and moved into [0, size), or centred on it."""
    if side >= size:
        return -((side - size) // 2)
    return min(max((start + end - side) // 2, 0), size - side)


def fill_holes(pixels: Tensor, keep: Tensor) -> Tensor:
    """Fills what is not kept smoothly from what is.

    By averages over ever larger squares ("pull-push", Gortler et al. 1996, The Lumigraph, section 3.4).

    Args:
        pixels: (B, C, H, W) float.
        keep: (B, H, W) bool; where a picture keeps nothing, zeros come out.

    Returns:
        (B, C, H, W); kept pixels as they were.
    """
    weight = keep.unsqueeze(1).to(pixels.dtype)
    return torch.where(weight > 0, pixels, _pull_push(pixels * weight, weight))


def _pull_push(total: Tensor, weight: Tensor) -> Tensor:
    """Weighted averages, taken from the coarser level where there is no weight."""
    average = torch.where(weight > 0, total / weight.clamp_min(1e-12), 0)
    if max(total.shape[-2:]) == 1:
        return average
    size = total.shape[-2:]
    padded = [F.pad(x, (0, size[1] % 2, 0, size[0] % 2)) for x in (average * (weight > 0), (weight > 0).to(weight))]
    pulled, covered = (F.avg_pool2d(x, 2) for x in padded)
    coarse = _pull_push(pulled, covered)
    pushed = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    return torch.where(weight > 0, average, pushed)


def to_field(pixels: Tensor, keep: Tensor, field: int) -> tuple[Tensor, Tensor]:
    """Resizes windows to the model's side.

    Args:
        pixels: Windows, (B, 3, S, S) in [-1, 1], holes filled.
        keep: (B, S, S) bool.
        field: Side of the model's images.

    Returns:
        Images (B, 3, field, field) in [-1, 1], and where they come from kept pixels alone, (B, field, field) bool.
    """
    side = pixels.shape[-1]
    if side == field:
        return pixels, keep
    return resize(pixels, field, field).clamp(-1, 1), F.adaptive_max_pool2d(
        (~keep).float().unsqueeze(1), field
    ).squeeze(1) == 0


def close_seam(painted: Tensor, original: Tensor, keep: Tensor, feather: int) -> Tensor:
    """Makes a painted hole meet its surroundings.

    What painting got wrong along the border is continued into the hole and taken off, less and less with the distance,
    so that the colours under the hole are never needed.

    Args:
        painted: (B, 3, H, W) in [-1, 1].
        original: (B or 1, 3, H, W); used where it is kept.
        keep: (B or 1, H, W) bool.
        feather: Distance in pixels at which the painting is left alone.

    Returns:
        (B, 3, H, W) in [-1, 1]: the original outside the hole.
    """
    keep = keep.expand(len(painted), -1, -1)
    error = fill_holes(torch.where(keep.unsqueeze(1), original - painted, 0), keep)
    ring, share = keep.float().unsqueeze(1), torch.zeros_like(painted[:, :1])
    for _ in range(feather):
        ring = F.max_pool2d(ring, 3, stride=1, padding=1)
        share = share + ring / (feather + 1)
    mended = (painted + share * error).clamp(-1, 1)
    return torch.where(keep.unsqueeze(1), original, mended)


# Pictures


def to_pixels(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) float32 in [-1, 1], transparent pixels on white.

    Raises:
        ValueError: If its mode cannot be given back as it was.
    """
    if image.mode in ("P", "PA", "1", "La", "RGBa", "YCbCr", "HSV", "LAB"):
        raise ValueError(f"pictures of mode {image.mode} are converted first; call `editable`.")
    return levels_to_tensor(np.asarray(to_rgb(image)).transpose(2, 0, 1))


def check_depth(data: bytes) -> None:
    """Raises ValueError for a PNG file of 16 bits a channel, which Pillow opens as one of 8 if it has colour."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":
        raise ValueError("the picture has 16 bits a channel; save it with 8 bits.")


def editable(image: Image.Image) -> Image.Image:
    """The picture in a mode that painted pixels can be put into, with its transparency as a channel.

    Palettes become RGB or RGBA, bilevel becomes grey; of a phone's picture in several views (MPO) the first is taken.

    Raises:
        ValueError: If it is an animation, or its pixels have more than 8 bits.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"the picture is an animation of {frames} frames; save one of them.")
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"the picture has more than 8 bits a channel (mode {image.mode}); save it with 8 bits.")
    if image.mode == "1":
        image = image.convert("L")
    if "transparency" in image.info and image.mode in ("L", "RGB"):  # one colour stands for transparent
        return image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode in PASTED_MODES:
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def paste(image: Image.Image, pixels: Tensor, hidden: Tensor) -> Image.Image:
    """A copy of a picture, in its mode and with its alpha, with painted pixels where it was hidden.

    Args:
        image: In a mode of `PASTED_MODES`.
        pixels: (3, H, W) in [-1, 1], what is seen on white.
        hidden: (H, W) bool.
    """
    painted = in_mode(pixels, image.mode, image.getchannel("A") if "A" in image.mode else None)
    result = image.copy()
    result.paste(painted, mask=Image.fromarray(hidden.cpu().numpy()))
    return result


def in_mode(pixels: Tensor, mode: str, alpha: Image.Image | None) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as a picture; with alpha, its colours are those that are seen as them on white."""
    if alpha is None:
        return tensor_to_pil(pixels[None])[0].convert(mode)
    share = to_share(alpha).to(pixels)
    colours = torch.where(share > 0, 1 - (1 - pixels) / share, pixels)
    picture = tensor_to_pil(colours[None])[0].convert(mode.removesuffix("A"))
    picture.putalpha(alpha)
    return picture


def to_share(alpha: Image.Image) -> Tensor:
    """Alpha as (H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(alpha, dtype=np.float32)) / 255
