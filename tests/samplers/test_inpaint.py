"""Inpainting, outpainting and editing pictures of any size, with every model."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genaim.core.noise import NoiseSource
from genaim.core.order import ORDERS
from genaim.models import GenerativeModel
from samplers.canvas import Window
from samplers.inpaint import complete, count_pieces, edit, extend, inpaint, outpaint, pieces, stages
from tests.tiny import SINGLE_GRID, make_model, make_var

MODELS = {
    "var": make_var,
    "mar": lambda: make_model("mar", SINGLE_GRID["latents"](), "flow"),
    "causal": lambda: make_model("causal", SINGLE_GRID["patches"](), "logistic"),
    "plain_raster": lambda: make_model("causal", SINGLE_GRID["codes"](), "categorical", known_first=0.0),
}
EACH = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.filterwarnings("ignore:the model was trained in its plain order")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    array = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(array, "RGBA")
    return image if mode == "RGBA" else image.convert(mode)


def hole(width: int, height: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@EACH
@pytest.mark.parametrize("size", [(8, 8), (5, 12), (90, 70), (1, 1)])
def test_outside_of_the_mask_nothing_changes(name: str, size: tuple[int, int]) -> None:
    image = picture(*size, "RGBA")
    width, height = size
    mask = hole(
        width, height, width // 3, height // 3, width // 3 + max(1, width // 4), height // 3 + max(1, height // 3)
    )
    results = inpaint(MODELS[name](), image, mask, 2, n=2)
    before = np.asarray(image)
    for result in results:
        after = np.asarray(result)
        assert result.mode == "RGBA" and result.size == size
        assert (after[~mask] == before[~mask]).all()
        assert (after[..., 3] == before[..., 3]).all()
        assert (after[mask][:, :3] != before[mask][:, :3]).any()
    if size != (1, 1):
        assert results[0].tobytes() != results[1].tobytes(), "results differ"


@EACH
def test_what_is_under_the_mask_is_never_looked_at(name: str) -> None:
    mask = hole(24, 20, 6, 4, 15, 16)
    image = picture(24, 20)
    other = np.array(image)
    other[mask] = 255 - other[mask]
    model = MODELS[name]()
    first, second = (inpaint(model, picture, mask, 1)[0] for picture in (image, Image.fromarray(other)))
    assert first.tobytes() == second.tobytes()


@EACH
def test_a_result_does_not_depend_on_how_many_there_are(name: str) -> None:
    image, mask = picture(8, 8), hole(8, 8, 2, 2, 6, 7)
    model = MODELS[name]()
    three = inpaint(model, image, mask, 1, n=3, batch_size=2, seed=5)
    second = inpaint(model, image, mask, 1, first_index=1, seed=5)[0]
    difference = np.abs(np.asarray(three[1], dtype=int) - np.asarray(second, dtype=int))
    assert difference.max() <= 3  # another batch size rounds differently
    assert three[0].tobytes() != three[1].tobytes()


def test_guidance_needs_a_class() -> None:
    image, mask, model = picture(8, 8), hole(8, 8, 2, 2, 6, 7), make_var()
    assert inpaint(model, image, mask, guidance_scale=1.0)[0].tobytes() == inpaint(model, image, mask)[0].tobytes()
    with pytest.raises(ValueError, match="guidance 7 needs a class"):
        inpaint(model, image, mask, guidance_scale=7.0)


def test_a_sketch_sees_no_bars_beyond_the_picture() -> None:
    """Grey beyond a picture that is not square was encoded with it."""
    model = make_model("mar", SINGLE_GRID["patches"](), "gaussian_unit")
    white = Image.new("RGB", (24, 13), "white")
    assert np.asarray(edit(model, white, 0, strength=0.0)[0]).min() == 255


def test_paint_under_alpha_looks_as_it_was_painted() -> None:
    """It was laid on white twice."""
    model = make_model("mar", SINGLE_GRID["patches"](), "gaussian_unit")
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert edit(model, image, 0, strength=0.0)[0].tobytes() == image.tobytes()


def test_every_step_of_an_outpainting_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[complete.__module__]
    seen, original = [], module.complete

    def spy(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(options["first_index"])
        return original(*arguments, **options)

    monkeypatch.setattr(module, "complete", spy)
    outpaint(make_var(), picture(8, 8), 1, left=5, right=5, n=2)
    assert seen == [0, 1 << 20, 2 << 20]  # 2 more on each side, then 2, then 1; of all results at once
    seen.clear()
    outpaint(make_var(), picture(8, 8), 1, left=2, first_index=7)
    edit(make_var(), picture(8, 8), 1, first_index=7)
    assert seen == [7, 7]


def test_a_picture_is_encoded_once_for_all_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_var()
    encode, seen = model.tokenizer.encode, []

    def spy(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return encode(images)

    monkeypatch.setattr(model.tokenizer, "encode", spy)
    inpaint(model, picture(8, 8), hole(8, 8, 2, 2, 6, 7), 1, n=5, batch_size=2)
    assert seen == [1]
    outpaint(model, picture(8, 8), 1, right=4, n=5, batch_size=2)  # in two steps, of which the results differ
    assert seen == [1, *[2, 2, 1] * 2]


def test_large_pictures_are_continued_at_the_models_own_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, around = [], Window.around

    def spy(hidden: torch.Tensor, field: int) -> Window:
        windows.append(around(hidden, field))
        return windows[-1]

    monkeypatch.setattr(Window, "around", spy)
    result = outpaint(make_var(), picture(40, 36), 1, left=7)[0]
    assert result.size == (47, 36)
    assert result.crop((7, 0, 47, 36)).tobytes() == picture(40, 36).tobytes()
    assert len(windows) == 18 and {window.side for window in windows} == {8}  # 9 pieces of 4x4, twice
    assert (np.asarray(result)[:, :7] > 0).any(axis=(1, 2)).all(), "all of it is painted"


def test_pieces_cover_what_is_new_once() -> None:
    new = np.zeros((20, 30), dtype=bool)
    new[:, :9], new[:5] = True, True
    masks, rest = zip(*pieces(new, 6), strict=True)
    assert (sum(mask.astype(int) for mask in masks) == new).all()
    for number, left in enumerate(rest):
        assert (left == new & ~np.logical_or.reduce(masks[: number + 1])).all()


@pytest.mark.parametrize(
    ("size", "sides"),
    [((8, 8), (5, 0, 5, 0)), ((40, 36), (7, 0, 0, 0)), ((33, 9), (3, 4, 0, 11)), ((1, 1), (0, 0, 0, 9))],
)
def test_pieces_are_counted_beforehand(size: tuple[int, int], sides: tuple[int, int, int, int]) -> None:
    image, painted = picture(*size), 0
    for added, side in stages(size, sides, 8):
        image, new = extend(image, *added)
        painted += len(list(pieces(new, side)))
    assert image.size == (size[0] + sides[0] + sides[2], size[1] + sides[1] + sides[3])
    assert count_pieces(size, sides, 8) == painted


def test_a_plain_raster_model_says_what_it_sees() -> None:
    with pytest.warns(UserWarning, match="none behind it"):
        inpaint(MODELS["plain_raster"](), picture(8, 8), hole(8, 8, 2, 2, 6, 7))


def test_models_that_enlarge_cannot_complete() -> None:
    with pytest.raises(ValueError, match="cannot complete them; take emoji-mar"):
        inpaint(make_var(low_res=4), picture(8, 8), hole(8, 8, 2, 2, 6, 7))


@EACH
def test_strength_goes_from_the_picture_to_a_new_one(name: str) -> None:
    model = MODELS[name]()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    nothing, labels = torch.zeros(2, 8, 8, dtype=torch.bool), torch.tensor([0, 1])
    same = complete(model, images, nothing, labels, strength=0.0)
    torch.testing.assert_close(same, model.tokenizer.decode(model.tokenizer.encode(images)))
    new = complete(model, images, nothing, labels, strength=1.0)
    other = complete(model, torch.zeros_like(images), nothing, labels, strength=1.0)
    assert new.equal(other)
    assert not complete(model, images, nothing, labels, strength=0.5).equal(new)


@pytest.mark.parametrize("name", ORDERS)
def test_a_sketch_is_a_share_of_the_tokens(name: str) -> None:
    order = ORDERS[name]((1, 2, 3)) if name == "scales" else ORDERS[name](4, 5)
    noise = NoiseSource(0, torch.arange(3))
    share: dict[float, Any] = {s: order.sketch(s, noise) for s in (0.0, 0.5, 1.0)}
    assert not share[0.0].any() and share[1.0].all()
    kept = {"scales": 5}.get(name, 10)  # of three scales, round(1.5) = 2 are kept
    assert share[0.5].sum(1).tolist() == [kept] * 3


def test_edit_needs_classes() -> None:
    model = make_var(num_classes=0)
    with pytest.raises(ValueError, match="no classes"):
        edit(model, picture(8, 8), 0)
    with pytest.raises(ValueError, match="class 5 is not in 0 to 4"):
        edit(make_var(), picture(8, 8), 5)
    results = edit(make_var(), picture(20, 12), 3, hole(20, 12, 0, 0, 10, 12), strength=0.7, n=2)
    assert (np.asarray(results[0])[:, 10:] == np.asarray(picture(20, 12))[:, 10:]).all()


@EACH
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_outpainting_holds_the_picture(name: str, mode: str) -> None:
    image = picture(9, 6, mode)
    results = outpaint(MODELS[name](), image, 1, left=3, bottom=11, n=2)  # two steps of 4 or more
    for result in results:
        assert result.size == (12, 17) and result.mode == mode
        assert result.crop((3, 0, 12, 6)).tobytes() == image.tobytes()
        if mode == "RGBA":
            assert (np.asarray(result.crop((0, 6, 12, 17)))[..., 3] == 255).all()
    assert results[0].tobytes() != results[1].tobytes()


def test_extend() -> None:
    larger, mask = extend(Image.new("L", (2, 1), 9), 1, 2, 3, 0)
    assert larger.size == (6, 3) and mask.sum() == 16
    assert np.asarray(larger)[~mask].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((8, 8), dtype=bool), "the mask is empty"),
        (np.ones((8, 9), dtype=bool), "the mask is 9x8, but the picture 8x8"),
        (np.ones((8, 8), dtype=np.uint8), "give an image, or a"),
        (Image.new("L", (8, 8), 127), "the mask is empty"),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 0)), "the mask is empty"),
        (Image.new("I;16", (8, 8), 300), "more than 8 bits"),
    ],
)
def test_masks_that_fit_nothing(mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inpaint(make_var(), picture(8, 8), mask)


def test_bad_input() -> None:
    model: GenerativeModel = make_var()
    full = np.ones((8, 8), dtype=bool)
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    for call, message in [
        (lambda: inpaint(model, clear, full), "transparent pixels only"),
        (lambda: inpaint(model, picture(8, 8), full, n=0), "n must be 1 or more"),
        (lambda: inpaint(model, picture(8, 8), full, strength=1.5), "strength must be in"),
        (lambda: outpaint(model, picture(8, 8)), "give pixels to add"),
        (lambda: outpaint(model, picture(8, 8), left=-1, top=3), "give pixels to add"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert inpaint(model, picture(8, 8), full)[0].size == (8, 8), "a full mask is generation"
