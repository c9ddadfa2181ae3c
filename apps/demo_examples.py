"""Pictures that come with the web demo, to try it without an upload; their licences are in ``examples/README.md``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apps.demo_jobs import ANY_CLASS, Models

FOLDER = Path(__file__).parent / "examples"
PAINT = (214, 51, 108, 128)  # as the brush paints
THUMBNAIL = 128


@dataclass(frozen=True)
class Example:
    """A picture for a tab."""

    name: str
    """Of the file; a painted mask is beside it, white where to paint."""
    model: str
    """Bundled model."""
    class_name: str = ANY_CLASS
    """Class of the model."""
    painted: bool = False
    """Whether its mask comes with it; then it must be 128x128, see `CANVAS`."""

    def picture(self) -> Image.Image:
        """The picture."""
        return Image.open(FOLDER / f"{self.name}.png")

    def layer(self) -> Image.Image:
        """The mask as a layer of paint, RGBA."""
        with Image.open(FOLDER / f"{self.name}-mask.png") as mask:
            painted = np.asarray(mask.convert("L"))[..., None] >= 128
        return Image.fromarray(np.where(painted, PAINT, 0).astype(np.uint8), "RGBA")

    def value(self) -> Any:
        """What the tab's picture becomes."""
        if not self.painted:
            return str(FOLDER / f"{self.name}.png")
        # with a composite, the editor would take that for the picture, and the paint for a part of it
        return {"background": self.picture(), "layers": [self.layer()], "composite": None}

    def thumbnail(self) -> Image.Image:
        """The picture with its mask, on white."""
        picture = over(self.picture(), self.layer()) if self.painted else self.picture()
        ground = over(Image.new("RGBA", picture.size, "white"), picture)
        return ground.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)


def over(picture: Image.Image, layer: Image.Image) -> Image.Image:
    """A layer over a picture, RGBA."""
    return Image.alpha_composite(picture.convert("RGBA"), layer.convert("RGBA"))


EXAMPLES = {
    "Inpaint": [
        Example("fox", "emoji-var", "Animals & Nature", painted=True),
        Example("cat", "emoji-var", "Smileys & Emotion", painted=True),
        Example("tulip", "emoji-var", "Animals & Nature", painted=True),
        Example("digit", "mnist-aim", "3"),
    ],
    "Outpaint": [Example("fox", "emoji-var", "Animals & Nature"), Example("rocket", "emoji-var", "Travel & Places")],
}


def load_examples(tab: str, models: Models) -> list[Example]:
    """The examples of a tab whose model is served."""
    return [example for example in EXAMPLES.get(tab, []) if example.model in models.configs]
