"""Contact sheets: many images in one."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from genaim.data.transforms import tensor_to_pil


def contact_sheet(
    images: Tensor | Sequence[Image.Image], columns: int = 8, gap: int = 2, scale: int = 1, ground: str = "white"
) -> Image.Image:
    """Lays images out in rows.

    Args:
        images: (B, 3, H, W) in [-1, 1], or pictures of one size; at least one.
        columns: Images in a row.
        gap: Pixels between them.
        scale: Whole factor of enlargement, nearest neighbour.
        ground: Colour between them.
    """
    pictures = tensor_to_pil(images) if isinstance(images, Tensor) else list(images)
    columns = min(columns, len(pictures))
    width, height = (side * scale for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), ground)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
