"""Every sampler on every bundled generator."""

import numpy as np
import pytest
from PIL import Image

from genaim.models import GenerativeModel
from genaim.pretrained import load_generator
from genaim.pretrained.store import bundled, read_config
from samplers import edit, inpaint, outpaint

GENERATORS = [name for name, folder in bundled().items() if "model" in read_config(folder)]


@pytest.fixture(scope="module", params=GENERATORS)
def model(request: pytest.FixtureRequest) -> GenerativeModel:
    return load_generator(request.param)


@pytest.fixture
def picture(model: GenerativeModel) -> Image.Image:
    """A disc on white, of the model's size."""
    side = model.tokenizer.image_size
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    array = np.full((side, side, 3), 255, dtype=np.uint8)
    array[rows**2 + columns**2 < (side / 3) ** 2] = (250, 200, 40)
    return Image.fromarray(array)


def test_inpaint(model: GenerativeModel, picture: Image.Image) -> None:
    side = picture.width
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    for result in inpaint(model, picture, mask, 1, n=2):
        assert (np.asarray(result)[~mask] == np.asarray(picture)[~mask]).all()


def test_edit(model: GenerativeModel, picture: Image.Image) -> None:
    same, new = (np.asarray(edit(model, picture, 2, strength=s)[0], dtype=float) for s in (0.0, 1.0))
    before = np.asarray(picture, dtype=float)
    assert np.square(same - before).mean() < np.square(new - before).mean()


def test_outpaint(model: GenerativeModel, picture: Image.Image) -> None:
    side = picture.width
    result = outpaint(model, picture, 1, right=side // 4)[0]
    assert result.size == (side + side // 4, side)
    assert result.crop((0, 0, side, side)).tobytes() == picture.tobytes()
