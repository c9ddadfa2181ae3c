"""Pictures and masks that people send to the web demo, read within limits of bytes, pixels and formats."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from genaim.data.transforms import open_image
from samplers.canvas import check_depth, editable

MAX_BYTES = 20 * 2**20  # of a file
MAX_PIXELS = 2048 * 2048  # of a picture
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MASK_ALPHA = 16  # of 255; fainter traces, as an eraser leaves them, are not painted


def check_pixels(pixels: int) -> None:
    """Raises ValueError if a picture is too large to be worked on."""
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"the picture has {pixels / 1e6:.1f} million pixels; at most {MAX_PIXELS / 1e6:.1f} million (2048x2048) "
            "are allowed."
        )


def read_picture(source: bytes | Path) -> Image.Image:
    """A picture that was sent, upright, in a mode that PNG files and painting know.

    Raises:
        ValueError: If it is too large, in no allowed format, broken, animated, or has more than 8 bits a channel.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size / 2**20:.1f} MB; at most {MAX_BYTES // 2**20} MB are allowed.")
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            pixels = header.width * header.height
    except UnidentifiedImageError:
        raise ValueError(f"the file is no picture; give one of {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the picture is too large; at most {MAX_PIXELS / 1e6:.1f} million pixels.") from None
    check_pixels(pixels)
    try:
        image = open_image(data)
    except Exception as error:  # Pillow's plugins raise many types
        raise ValueError(f"the picture is broken: {error}.") from None
    check_depth(data)
    image = editable(image)
    if image.mode == "CMYK":
        image = image.convert("RGB")
        image.info.pop("icc_profile", None)  # is one of inks
    return image


def read_mask(source: bytes | Path) -> np.ndarray:
    """What is painted on a layer, (H, W) bool: where it is not transparent; without alpha, where it is white.

    Raises:
        ValueError: As `read_picture`.
    """
    layer = read_picture(source)
    if "A" in layer.mode:
        return np.asarray(layer.getchannel("A")) >= MASK_ALPHA
    return np.asarray(layer.convert("L")) >= 128
