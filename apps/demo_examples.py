"""Pictures that come with the web demo, to try it without an upload; their licences are in ``examples/README.md``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apps.demo_jobs import ANY_CLASS

FOLDER = Path(__file__).parent / "examples"
PAINT = (214, 51, 108, 128)  # as the brush paints
THUMBNAIL = 128


@dataclass(frozen=True)
class Example:
    """A picture for a tab."""

    name: str
    """Of the file; a painted mask is beside it, white where to paint."""
    models: tuple[str, ...]
    """Bundled models, the best first."""
    class_name: str = ANY_CLASS
    """Class of the model."""
    painted: bool = False
    """Whether its mask comes with it; then it must be 128x128, see `CANVAS`."""
    side: int | None = None
    """Side to which the picture is reduced."""

    def model(self, names: Sequence[str]) -> str | None:
        """The best of its models among these."""
        return next((model for model in self.models if model in names), None)

    def picture(self) -> Image.Image:
        """The picture."""
        picture = Image.open(FOLDER / f"{self.name}.png")
        return picture if self.side is None else picture.resize((self.side, self.side), Image.Resampling.BICUBIC)

    def layer(self) -> Image.Image:
        """The mask as a layer of paint, RGBA."""
        with Image.open(FOLDER / f"{self.name}-mask.png") as mask:
            painted = np.asarray(mask.convert("L"))[..., None] >= 128
        return Image.fromarray(np.where(painted, PAINT, 0).astype(np.uint8), "RGBA")

    def value(self) -> Any:
        """What the tab's picture becomes."""
        if not self.painted:
            return self.picture()
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


PAINTERS = ("emoji-mar", "emoji-var")
ENLARGERS = ("emoji-sr4", "emoji-var")
ANIMALS, PLACES = "Animals & Nature", "Travel & Places"
EXAMPLES = {
    "Inpaint": [
        Example("fox", PAINTERS, ANIMALS, painted=True),
        Example("cat", PAINTERS, "Smileys & Emotion", painted=True),
        Example("tulip", PAINTERS, ANIMALS, painted=True),
        Example("digit", ("mnist-aim", "mnist-var"), "3"),
    ],
    "Outpaint": [Example("fox", PAINTERS, ANIMALS), Example("rocket", PAINTERS, PLACES)],
    "Upscale": [Example(name, ENLARGERS, side=32) for name in ("fox", "rocket", "tulip", "volcano")],
}


def load_examples(tab: str, names: Sequence[str]) -> list[Example]:
    """The examples of a tab for these models."""
    return [example for example in EXAMPLES[tab] if example.model(names)]
