"""Every sampler on every bundled generator: results, or an error that names the models that can."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from genaim.models import GenerativeModel
from genaim.pretrained import load_generator
from genaim.pretrained.names import bundled_generators
from samplers import edit, generate, inpaint, outpaint, super_resolve

GENERATORS = list(bundled_generators())


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


def refused(model: GenerativeModel, call: Callable[[], object]) -> bool:
    """Whether the model only enlarges, in which case the call must say which models do the other work."""
    if model.config.low_res is None:
        return False
    with pytest.raises(ValueError, match=r"enlarges pictures|pass low_res"):
        call()
    return True


def test_generate(model: GenerativeModel) -> None:
    labels = torch.tensor([0, max(0, model.config.num_classes - 1)])
    if refused(model, lambda: generate(model, labels)):
        return
    images = generate(model, labels)
    assert images.isfinite().all() and not images[0].equal(images[1])


def test_inpaint(model: GenerativeModel, picture: Image.Image) -> None:
    side = picture.width
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    if refused(model, lambda: inpaint(model, picture, mask)):
        return
    for result in inpaint(model, picture, mask, 1, n=2):
        assert (np.asarray(result)[~mask] == np.asarray(picture)[~mask]).all()


def test_edit(model: GenerativeModel, picture: Image.Image) -> None:
    if model.config.low_res is not None:
        with pytest.raises(ValueError, match="no classes"):
            edit(model, picture, 2)
        return
    same, new = (np.asarray(edit(model, picture, 2, strength=s)[0], dtype=float) for s in (0.0, 1.0))
    before = np.asarray(picture, dtype=float)
    assert np.square(same - before).mean() < np.square(new - before).mean()


def test_outpaint(model: GenerativeModel, picture: Image.Image) -> None:
    side = picture.width
    if refused(model, lambda: outpaint(model, picture, right=4)):
        return
    result = outpaint(model, picture, 1, right=side // 4)[0]
    assert result.size == (side + side // 4, side)
    assert result.crop((0, 0, side, side)).tobytes() == picture.tobytes()


def test_upscale(model: GenerativeModel, picture: Image.Image) -> None:
    side = picture.width // 4
    small = picture.resize((side, side), Image.Resampling.BICUBIC)
    if model.config.kind != "var" and model.config.low_res is None:
        with pytest.raises(ValueError, match=r"cannot enlarge pictures.*take emoji-.*mnist-var"):
            super_resolve(model, small, 4)
        return
    result = super_resolve(model, small, 4)
    assert result.size == picture.size
    again = np.asarray(result.resize((side, side), Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(again - np.asarray(small)).max() <= 4
