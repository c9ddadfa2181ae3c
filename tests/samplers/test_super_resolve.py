"""Enlarging pictures of any size: who can, tiles that meet, modes that stay, results that reduce to what was given."""

import warnings
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from genaim.data.transforms import resize_images, tensor_to_levels, to_rgb
from genaim.pretrained import bundled
from samplers.canvas import to_pixels
from samplers.consistency import LEVEL, project
from samplers.super_resolve import Tiles, check_factor, enlarge, enlargers, super_resolve
from tests.tiny import SINGLE_GRID, make_model, make_var

LOW = {"low_res": 4, "low_res_patch": 2}
MODELS = {
    "var": make_var,
    "var_low_res": lambda: make_var(**LOW),
    "mar": lambda: make_model("mar", SINGLE_GRID["latents"](), "flow", **LOW),
    "causal": lambda: make_model("causal", SINGLE_GRID["codes"](), "categorical", **LOW),
}
EACH = pytest.mark.parametrize("name", MODELS)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture of random colours, for which enlarged ones exist."""
    coarse = np.random.default_rng(0).integers(40, 216, (3, 3, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize((width, height), Image.Resampling.BILINEAR)
    return image if mode == "RGBA" else image.convert(mode)


def error(result: Image.Image, given: Image.Image) -> np.ndarray:
    """Levels between a reduced result and what was given."""
    reduced = result.resize(given.size, Image.Resampling.BICUBIC)
    return np.abs(np.asarray(reduced).astype(int) - np.asarray(given).astype(int))


@EACH
@pytest.mark.parametrize("size", [(4, 4), (3, 9), (13, 6), (1, 1)])
def test_any_size_is_enlarged_and_reduces_to_what_was_given(name: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    result = super_resolve(MODELS[name](), image, 2)
    assert result.size == (2 * size[0], 2 * size[1]) and result.mode == "RGB"
    assert error(result, image).max() <= 1
    loose = super_resolve(MODELS[name](), image, 2, consistent=False)
    assert error(loose, image).max() > 1


@EACH
def test_a_seed_repeats_and_batches_of_tiles_do_not_matter(name: str) -> None:
    model, image, told = MODELS[name](), picture(9, 4), []
    options = {"seed": 3, "consistent": False}
    result = super_resolve(model, image, 2, report=lambda done, total: told.append((done, total)), **options)
    assert told == [(5, 5)]
    told.clear()
    single = super_resolve(
        model, image, 2, batch_size=1, report=lambda done, total: told.append((done, total)), **options
    )
    assert told == [(done, 5) for done in range(1, 6)]
    assert np.abs(np.asarray(result).astype(int) - np.asarray(single)).max() <= 1
    assert not np.array_equal(result, super_resolve(model, image, 2, **options | {"seed": 4}))
    later = super_resolve(model, image, 2, first_index=100, **options)
    assert not np.array_equal(result, later)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK", "P", "1"])
def test_the_mode_stays(mode: str) -> None:
    image = picture(5, 6, "RGB").convert(mode) if mode == "P" else picture(5, 6, mode)
    with nullcontext() if mode != "1" else pytest.warns(UserWarning, match="hard edges"):
        result = super_resolve(make_var(), image, 2)
    assert result.size == (10, 12) and result.mode == {"P": "RGB", "1": "L"}.get(mode, mode)
    if "A" in mode:
        alpha = image.getchannel("A")
        assert error(result.getchannel("A"), alpha).max() <= 1
        loose = super_resolve(make_var(), image, 2, consistent=False).getchannel("A")
        assert np.array_equal(loose, alpha.resize((10, 12), Image.Resampling.BICUBIC))


def test_transparent_pictures_are_consistent_on_white() -> None:
    image = picture(6, 6, "RGBA")
    result = super_resolve(make_var(), image, 2)
    reduced = resize_images(to_pixels(result)[None], (6, 6))[0]
    assert (reduced - to_pixels(image)).abs().max() <= 1.5 * LEVEL


def discs(mode: str) -> Image.Image:
    """Hard-edged discs, large and reduced by 4, as emoji are; the ground is white or transparent."""
    large = Image.new("RGBA", (64, 64), (255, 255, 255, 0) if "A" in mode else (255, 255, 255, 255))
    draw = ImageDraw.Draw(large)
    draw.ellipse((6, 6, 57, 57), fill=(255, 200, 0, 255))
    draw.ellipse((20, 18, 30, 28), fill=(0, 0, 0, 255))
    return large.resize((16, 16), Image.Resampling.BICUBIC).convert(mode)


def square(mode: str, ground: int = 255) -> Image.Image:
    """A red square on white, or on nothing, pixel by pixel."""
    red = (ground, 255 - ground, 255 - ground, 255)
    image = Image.new("RGBA", (12, 12), (ground, ground, ground, 0 if "A" in mode else 255))
    image.paste(red, (4, 4, 8, 8))
    return image.convert(mode)


@pytest.mark.parametrize("image", [discs("RGB"), discs("RGBA"), discs("LA"), square("RGB", 215), picture(9, 7)])
def test_what_some_picture_reduces_to_is_met_without_a_warning(image: Image.Image) -> None:
    """Transparent emoji were off by 32 levels, as was their alpha, which was bicubic."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = super_resolve(make_var(), image, 4)
    off = [error(to_rgb(result), to_rgb(image))]
    off += [error(result.getchannel("A"), image.getchannel("A"))] if "A" in image.mode else []
    levels = np.concatenate([x.ravel() for x in off])
    assert (levels <= 1).mean() >= 0.999 and levels.max() <= 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_warning_tells_how_far_a_result_is_from_what_no_picture_reduces_to(mode: str) -> None:
    image = square(mode)
    with pytest.warns(UserWarning, match="hard edges close to black or white are reductions of no image") as told:
        result = super_resolve(make_var(), image, 4)
    most = error(to_rgb(result), to_rgb(image)).max()
    assert 30 <= most <= 40
    assert mode == "RGBA" or f"is up to {most} levels of 8 bits from the picture (2" in str(told[0].message)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        super_resolve(make_var(), image, 4, consistent=False)


def test_scales_but_the_last_are_those_of_the_picture() -> None:
    model, low_res = make_var(), to_pixels(picture(4, 4)).expand(2, -1, -1, -1)
    tokens = []
    model.tokenizer.decode = lambda found: tokens.append(found) or torch.zeros(len(found), 3, 8, 8)
    enlarge(model, low_res, torch.tensor([0, 1]))
    large = torch.nn.functional.interpolate(low_res, size=(8, 8), mode="bicubic", antialias=True)
    expected = model.tokenizer.encode(large)
    assert tokens[0][:, :5].equal(expected[:, :5]) and not tokens[0][:, 5:].equal(expected[:, 5:])


def test_the_prefix_decides() -> None:
    model = make_model("mar", SINGLE_GRID["latents"](), "flow", **LOW)
    with torch.no_grad():
        model.low_res_prefix.embed.weight.mul_(100)
    first, second = (
        enlarge(model, torch.full((1, 3, 4, 4), value), torch.tensor([0]), consistent=False) for value in (-0.5, 0.5)
    )
    assert (first - second).abs().max() > 1e-3


# Who can, and by which factor


def test_models_that_cannot_are_told_who_can() -> None:
    model = make_model("mar", SINGLE_GRID["latents"](), "flow")
    with pytest.raises(ValueError, match=r"the model cannot enlarge pictures.*emoji-var, mnist-var") as raised:
        super_resolve(model, picture(4, 4))
    assert "\n" not in str(raised.value)
    assert set(enlargers()) <= bundled().keys() and {"emoji-var", "mnist-var"} <= set(enlargers())
    assert "mnist-aim" not in enlargers()


def test_factors() -> None:
    var, trained = make_var(), make_var(**LOW)
    assert [check_factor(var, factor) for factor in (None, 2, 4, 8)] == [4, 2, 4, 8]
    assert check_factor(trained, None) == check_factor(trained, 2) == 2
    with pytest.raises(ValueError, match=r"the model enlarges by 2, not by 4; leave factor out"):
        check_factor(trained, 4)
    for factor in (1, 3, 0, 16):
        with pytest.raises(ValueError, match=rf"factor {factor} does not divide the model's 8 pixels; use one of \[2,"):
            check_factor(var, factor)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (picture(4, 4), {"label": 5}, "class 5 is not in 0 to 4"),
        (picture(4, 4), {"overlap": 4}, "overlap must be 0 or more and less than the tile's 4 pixels, not 4"),
        (Image.new("RGB", (20_000, 20_000)), {}, "the result would have 40000x40000 pixels, more than 16,777,216"),
        (Image.new("I;16", (4, 4)), {}, "more than 8 bits a channel"),
        (picture(4, 4), {"num_steps": 2}, "2 steps are asked for"),
    ],
)
def test_what_cannot_be_honoured_is_refused(image: Image.Image, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        super_resolve(make_var(), image, 2, **options)


# Tiles


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 11), (1, 3), (30, 17)])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_tiles_of_a_picture_give_the_picture(height: int, width: int, overlap: int) -> None:
    pixels = torch.rand(3, height, width)
    tiles = Tiles.over(pixels, 4, overlap)
    squares = tiles.cut(0, len(tiles.corners))
    torch.testing.assert_close(tiles.blend(squares, 1), pixels)
    doubled = squares.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(tiles.blend(doubled, 2), pixels.repeat_interleave(2, -1).repeat_interleave(2, -2))
    tops = sorted({top for top, _ in tiles.corners})
    assert all(second - first <= 4 - overlap for first, second in pairwise(tops))
    assert tiles.corners == sorted(tiles.corners)


def test_a_seam_between_unlike_tiles_is_a_gradient() -> None:
    tiles = Tiles.over(torch.zeros(3, 8, 9), 8, 3)  # continued by a pixel on the left and on the right
    assert tiles.corners == [(0, 0), (0, 3)] and tiles.pixels.shape == (3, 8, 11)
    row = tiles.blend(torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)]), 2)[0, 8]
    assert len(row) == 18 and row[:4].eq(0).all() and row[14:].eq(1).all()
    steps = row.diff()[3:14]
    assert (steps > 0).all() and steps.max() < 0.3


# Consistency


def noise(side: int) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("kind", ["noise", "clipped"])
def test_the_projection_meets_its_bounds(factor: int, kind: str) -> None:
    """Before rounding to one level; after it, 99.9% of the values to one level, and all to four."""
    true = noise(24 * factor)
    if kind == "clipped":  # black and white discs, whose reductions are clipped at both ends
        grid = torch.arange(24 * factor) / factor
        true = torch.where((grid[:, None] - 12).square() + (grid - 11).square() < 64, 1.0, -1.0).expand(1, 3, -1, -1)
    low_res = resize_images(true, (24, 24))
    result = project(0.5 * noise(24 * factor), low_res)
    assert result.abs().max() <= 1
    reduced = torch.nn.functional.interpolate(result, size=(24, 24), mode="bicubic", antialias=True)
    assert (reduced - low_res).abs().max() <= LEVEL
    off = ((resize_images(result, (24, 24)) - low_res) / LEVEL).abs().round()
    assert (off <= 1).float().mean() >= 0.999 and off.max() <= 4


@pytest.mark.parametrize("factor", [2, 4])
def test_the_projection_meets_its_bounds_on_photographs(factor: int, data_root: Path) -> None:
    for name in ("img_003.png", "img_005.png"):
        true = to_pixels(Image.open(data_root / "sr" / "Set5" / name).convert("RGB"))[None]
        size = (true.shape[2] // factor, true.shape[3] // factor)
        true = true[:, :, : size[0] * factor, : size[1] * factor]
        low_res = resize_images(true, size)
        result = project(resize_images(low_res, (true.shape[2], true.shape[3])), low_res)
        reduced = torch.nn.functional.interpolate(result, size=size, mode="bicubic", antialias=True)
        assert (reduced - low_res).abs().max() <= LEVEL
        off = ((resize_images(result, size) - low_res) / LEVEL).abs().round()
        assert (off <= 1).float().mean() >= 0.999 and off.max() <= 4
        assert (result - true).square().mean() < (resize_images(low_res, true.shape[2:]) - true).square().mean()


def test_the_projection_leaves_consistent_images_alone() -> None:
    true = 0.8 * noise(16)
    low_res = torch.nn.functional.interpolate(true, size=(4, 4), mode="bicubic", antialias=True)
    assert project(true, low_res).equal(true)
    flat = torch.ones(1, 3, 16, 16)
    assert tensor_to_levels(project(flat, flat[..., :4, :4])).eq(255).all()


def drawing(kind: str) -> torch.Tensor:
    """Black on white, pixel by pixel."""
    image = torch.ones(1, 24) if kind == "edge" else torch.ones(8, 8)
    {"edge": image[:, 12:], "square": image[2:5, 2:5], "line": image[:, 4]}[kind].fill_(-1)
    return image


def reducing(length: int, factor: int) -> np.ndarray:
    """The matrix that reduces a column, (length, factor length)."""
    columns = torch.eye(factor * length, dtype=torch.float64)[None, None]
    reduced = torch.nn.functional.interpolate(columns, (length, factor * length), mode="bicubic", antialias=True)
    return reduced[0, 0].numpy()


@pytest.mark.parametrize("kind", ["edge", "square", "line"])
def test_hard_edges_come_as_close_as_least_squares(kind: str) -> None:
    """A linear program over the largest error tells that no image in [-1, 1] comes near."""
    optimize = pytest.importorskip("scipy.optimize")
    image = drawing(kind)
    matrix, target = np.kron(*(reducing(length, 4) for length in image.shape)), image.double().flatten().numpy()
    slack, count = np.ones((len(target), 1)), matrix.shape[1]
    closest = optimize.linprog(
        np.append(np.zeros(count), 1),
        A_ub=np.block([[matrix, -slack], [-matrix, -slack]]),
        b_ub=np.append(target, -target),
        bounds=[(-1, 1)] * count + [(0, None)],
    )
    assert closest.success and closest.fun > 15 * LEVEL
    result = project(torch.zeros(1, 1, 4 * image.shape[0], 4 * image.shape[1]), image[None, None])
    squares = optimize.lsq_linear(matrix, target, (-1, 1)).x
    found, best = (np.square(matrix @ x - target).mean() for x in (result.double().flatten().numpy(), squares))
    assert best <= found <= 1.1 * best
    narrow = 0.65 * image[None, None]  # levels 45 to 210
    result = project(torch.zeros(1, 1, 4 * image.shape[0], 4 * image.shape[1]), narrow)
    assert np.abs(matrix @ result.double().flatten().numpy() - 0.65 * target).max() <= LEVEL


def test_rows_of_a_batch_are_projected_by_themselves() -> None:
    """A row that no image reduces to kept the others going; those that were done lost the room for rounding."""
    low_res = torch.stack([0.2 * noise(4)[0], drawing("square")[::2, ::2].expand(3, -1, -1), 0.9 * noise(4)[0]])
    start = torch.cat([noise(16), torch.zeros(1, 3, 16, 16), -noise(16)])
    together = project(start, low_res)
    for row in range(3):
        alone = project(start[row : row + 1], low_res[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


@EACH
def test_consistent_results_ignore_the_batch(name: str) -> None:
    low_res = torch.cat([0.1 * noise(4), drawing("square")[::2, ::2].expand(1, 3, -1, -1)])
    model, labels = MODELS[name](), torch.tensor([0, 1])
    together = enlarge(model, low_res, labels)
    for row in range(2):
        alone = enlarge(model, low_res[row : row + 1], labels[row : row + 1], first_index=row)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-3)


def test_guidance_needs_a_class() -> None:
    with pytest.raises(ValueError, match="guidance 7 needs a class to be guided to"):
        super_resolve(make_var(), picture(9, 4), 2, guidance_scale=7.0)
    super_resolve(make_var(), picture(9, 4), 2, guidance_scale=1.0)
