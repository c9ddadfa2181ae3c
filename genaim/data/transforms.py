"""Pixels: from files of any colour mode to RGB tensors in [-1, 1], and back to PIL at the edges.

Transparent pixels are laid on a ground *before* resizing. Compositing is linear in premultiplied colour, so this equals
a premultiplied resize followed by compositing: hidden colours under transparent pixels cannot bleed into the edges.
Resizing is PIL's antialiased bicubic. Colour profiles (ICC) are ignored, as in the published data pipelines; of an
animation the first frame is used.
"""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageColor, UnidentifiedImageError
from torch import Tensor

Crop = Literal["center", "random", "resized"]
Color = tuple[int, int, int]

ASPECT_RATIO = (3 / 4, 4 / 3)  # of a "resized" crop, as in torchvision's RandomResizedCrop
CROP_TRIES = 10
LEVELS = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(
    1
)  # uint8 -> [-1, 1]; a table beats arithmetic
ORIENTATION_TAG = 0x0112
ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: bytes | str | Path) -> Image.Image:
    """Decodes an image file completely and turns it upright by its EXIF orientation.

    Args:
        source: The encoded bytes, or the path of the file.

    Raises:
        ValueError: If it is no image, or has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
        Exception: Whatever PIL raises on a file it cannot decode; its plugins raise many types.
    """
    file = io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
    try:
        image: Image.Image = Image.open(file)
    except UnidentifiedImageError:  # whose message holds a memory address, so that no two are the same
        raise ValueError("not in an image format that Pillow reads") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width}x{image.height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit}")
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        orientation = 1
    return image.transpose(ORIENTATION[orientation]) if orientation in ORIENTATION else image


def parse_color(color: str | Color) -> Color:
    """An RGB triple in 0..255 from a triple, a CSS name or ``#rrggbb``.

    Raises:
        ValueError: If it is not a colour.
    """
    if isinstance(color, str):
        try:
            red, green, blue = ImageColor.getrgb(color)[:3]
        except ValueError:
            raise ValueError(
                f"'{color}' is not a colour; give a CSS name such as 'white', '#rrggbb', or [r, g, b]."
            ) from None
        return red, green, blue
    if len(color) != 3 or not all(0 <= c <= 255 for c in color):
        raise ValueError(f"colour {list(color)} must have three values in 0..255.")
    return color


def to_rgb(image: Image.Image, background: Color = (255, 255, 255)) -> Image.Image:
    """Converts any colour mode to 8-bit RGB; transparent pixels show ``background``.

    16-bit grey is rounded to 8 bits, mode ``I`` is read as 16-bit.

    Raises:
        ValueError: If integer pixels leave the 16-bit range, or the mode is ``F``, which has no agreed range.
    """
    if image.mode == "F":
        raise ValueError("pixels are floats (mode F), which have no agreed range; convert the file to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels span {values.min()}..{values.max()}, outside the 16-bit range 0..65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*background, 255))
        ground.alpha_composite(image.convert("RGBA"))
        return ground.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def crop_box(
    width: int, height: int, crop: Crop, crop_scale: tuple[float, float], generator: np.random.Generator | None
) -> tuple[int, int, int, int]:
    """The part of the source image that becomes the square output: (left, top, right, bottom) in whole source pixels.

    "center" and "random" take a square of the short side; "resized" takes a share of the area in ``crop_scale`` at an
    aspect ratio in 3/4..4/3 (torchvision's RandomResizedCrop), or the central square if ten draws do not fit.
    """
    side = min(width, height)
    if crop != "center" and generator is None:
        raise ValueError(f"crop='{crop}' needs a generator; pass one, or use crop='center'.")
    if generator is not None and crop == "random":
        left = int(generator.integers(width - side + 1))
        top = int(generator.integers(height - side + 1))
        return left, top, left + side, top + side
    if generator is not None and crop == "resized":
        for _ in range(CROP_TRIES):
            area = width * height * generator.uniform(*crop_scale)
            ratio = np.exp(generator.uniform(*np.log(ASPECT_RATIO)))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(generator.integers(width - w + 1))
                top = int(generator.integers(height - h + 1))
                return left, top, left + w, top + h
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def image_to_tensor(
    image: Image.Image,
    image_size: int,
    background: Color = (255, 255, 255),
    *,
    crop: Crop = "center",
    crop_scale: tuple[float, float] = (0.4, 1.0),
    flip: bool = False,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Lays an image on a ground, crops and resizes it to a square, and scales it to [-1, 1].

    Crop and resize are one resampling of the box, so extreme aspect ratios cost no memory; a box that already has the
    asked size is copied pixel by pixel, so ``x / 127.5 - 1`` is exact.

    Args:
        image: Any PIL image.
        image_size: Side of the output in pixels.
        background: Ground under transparent pixels, RGB in 0..255.
        crop: Which part to keep, see `crop_box`.
        crop_scale: Share of the area that a "resized" crop keeps, (least, most).
        flip: Mirror left and right in half of the draws.
        generator: Draws of crop and flip; may be None for a central crop without flip.

    Returns:
        (3, image_size, image_size) float32 in [-1, 1].

    Raises:
        ValueError: If the colour mode has no agreed range, or randomness is asked for without a generator.
    """
    image = to_rgb(image, background)
    box = crop_box(image.width, image.height, crop, crop_scale, generator)
    if (box[2] - box[0], box[3] - box[1]) != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)
    elif image.size != (image_size, image_size):
        image = image.crop(box)
    pixels = np.asarray(image)  # (H, W, 3)
    if flip:
        if generator is None:
            raise ValueError("flip=True needs a generator; pass one, or use flip=False.")
        if generator.random() < 0.5:
            pixels = pixels[:, ::-1]
    return levels_to_tensor(pixels.transpose(2, 0, 1))


def levels_to_tensor(pixels: np.ndarray) -> Tensor:
    """8-bit pixels of any shape as float32 in [-1, 1]."""
    return torch.from_numpy(LEVELS[pixels])


def tensor_to_levels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit pixels, of the same shape; values outside are clipped."""
    return ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def tensor_to_pil(images: Tensor) -> list[Image.Image]:
    """Images (B, 3, H, W) in [-1, 1] as 8-bit RGB PIL images; values outside are clipped.

    Raises:
        ValueError: If the tensor is not (B, 3, H, W).
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"tensor_to_pil takes images (B, 3, H, W), not {tuple(images.shape)}.")
    return [Image.fromarray(p) for p in tensor_to_levels(images).permute(0, 2, 3, 1).cpu().numpy()]


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """PIL's bicubic resize of 8-bit pixels, antialiased where it reduces: what makes images of low resolution.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        size: Height and width of the result.

    Returns:
        (B, 3, *size) float32 in [-1, 1], on the CPU.
    """
    resized = [picture.resize(size[::-1], Image.Resampling.BICUBIC) for picture in tensor_to_pil(images)]
    return torch.stack([levels_to_tensor(np.asarray(picture).transpose(2, 0, 1)) for picture in resized])
