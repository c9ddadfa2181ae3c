"""Windows, holes and seams."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from genaim.data.transforms import open_image
from samplers.canvas import Window, check_depth, close_seam, editable, fill_holes, paste, to_field, to_pixels


def box(height: int, width: int, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    hidden = torch.zeros(height, width, dtype=torch.bool)
    hidden[top:bottom, left:right] = True
    return hidden


@pytest.mark.parametrize(
    ("hidden", "window"),
    [
        (box(64, 64, 3, 4, 9, 20), Window(0, 0, 64)),
        (box(100, 60, 3, 4, 9, 20), Window(-20, 0, 100)),  # whole, centred
        (box(256, 256, 0, 0, 1, 1), Window(0, 0, 256)),
        (box(300, 300, 290, 100, 300, 110), Window(236, 73, 64)),  # large: a window of the model's side, moved in
        (box(300, 400, 100, 100, 180, 120), Window(60, 30, 160)),  # twice the hole
        (box(20, 1000, 0, 0, 1000, 20), Window(0, -490, 1000)),  # a strip: beyond the picture above and below
    ],
)
def test_window(hidden: torch.Tensor, window: Window) -> None:
    assert Window.around(hidden, 64) == window


def test_spread_is_the_inverse_of_crop() -> None:
    pixels = torch.arange(60.0).view(1, 6, 10)
    for window in (Window(-2, -4, 14), Window(3, 1, 4), Window(-1, 2, 5)):
        there = window.spread(window.crop(torch.ones_like(pixels)), 6, 10) > 0
        assert window.spread(window.crop(pixels), 6, 10).equal(torch.where(there, pixels, 0))
        assert there.sum() == window.crop(torch.ones(6, 10)).sum()


def test_holes_are_filled_from_kept_pixels_alone() -> None:
    keep = torch.ones(2, 9, 13, dtype=torch.bool)
    keep[0, 2:7, 3:11] = False
    keep[1] = False
    pixels = torch.full((2, 3, 9, 13), 0.5)
    pixels[(~keep).unsqueeze(1).expand(-1, 3, -1, -1)] = float("nan")  # would spread if it were looked at
    filled = fill_holes(torch.nan_to_num(pixels, nan=1e6), keep)
    torch.testing.assert_close(filled[0], torch.full((3, 9, 13), 0.5))
    assert (filled[1] == 0).all(), "nothing is known"
    ramp = torch.linspace(-1, 1, 13).expand(1, 1, 9, 13)
    inside = fill_holes(ramp, keep[:1])[0, 0]
    assert inside.min() >= -1 and inside.max() <= 1
    assert inside[4, 3] < inside[4, 7] < inside[4, 10]


def test_a_constant_error_leaves_no_seam() -> None:
    keep = ~box(32, 32, 8, 8, 24, 24)[None]
    original = torch.rand(1, 3, 32, 32) * 0.5
    mended = close_seam(original - 0.3, original, keep, 4)
    assert mended[keep.unsqueeze(1).expand(-1, 3, -1, -1)].equal(original[keep.unsqueeze(1).expand(-1, 3, -1, -1)])
    error = (mended - original).abs()[0, 0]
    assert error[8, 16] < 0.1 < error[10, 16] < error[16, 16]
    assert error[16, 16] == pytest.approx(0.3, abs=1e-5), "far inside, painting is left alone"
    under = original.clone()
    under[:, :, 8:24, 8:24] = -1.0
    assert close_seam(original - 0.3, under, keep, 4)[0, :, 8:24, 8:24].equal(mended[0, :, 8:24, 8:24])


def test_a_resized_pixel_is_kept_only_if_all_of_it_is() -> None:
    keep = torch.ones(1, 12, 12, dtype=torch.bool)
    keep[0, 5, 5] = False
    resized, kept = to_field(torch.zeros(1, 3, 12, 12), keep, 4)
    assert resized.shape == (1, 3, 4, 4)
    assert (~kept).nonzero().tolist() == [[0, 1, 1]]
    _, kept = to_field(torch.zeros(1, 3, 12, 12), keep, 24)
    assert (~kept).sum() == 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK"])
def test_pasting_keeps_mode_alpha_and_everything_outside(mode: str) -> None:
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    array = rng.integers(0, 256, (10, 12, bands), dtype=np.uint8)
    image = Image.fromarray(array[..., 0]) if bands == 1 else Image.fromarray(array, mode)
    assert editable(image) is image
    hidden = box(10, 12, 2, 3, 7, 8)
    result = paste(image, -torch.ones(3, 10, 12), hidden)
    before, after = (np.asarray(x).reshape(10, 12, bands) for x in (image, result))
    assert result.mode == mode
    assert (after[~hidden.numpy()] == before[~hidden.numpy()]).all()
    if "A" not in mode:
        assert (to_pixels(result.convert("RGB"))[:, hidden] == -1).all()
    else:
        assert (after[..., -1] == before[..., -1]).all()


def test_modes() -> None:
    assert editable(Image.new("P", (4, 4))).mode == "RGB"
    assert editable(Image.new("1", (4, 4))).mode == "L"
    for mode in ("RGB", "L"):
        keyed = Image.new(mode, (4, 4))
        keyed.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
        assert editable(keyed).getchannel("A").getextrema() == (0, 0), "one colour stood for transparent"
    views = io.BytesIO()
    Image.new("RGB", (4, 4)).save(views, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert editable(open_image(views.getvalue())).mode == "RGB", "a phone's picture is no animation"
    deep = io.BytesIO()
    Image.new("I;16", (4, 4)).save(deep, "PNG")
    with pytest.raises(ValueError, match="16 bits a channel"):
        check_depth(deep.getvalue())
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        editable(Image.new("I;16", (4, 4)))
