"""Pixels in and out: exact where nothing is resampled, premultiplied where something is."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from genaim.data import image_to_tensor, parse_color, tensor_to_pil
from genaim.data.transforms import crop_box, open_image, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_fitting_image_is_copied_exactly_and_returns():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    tensor = image_to_tensor(Image.fromarray(pixels), 16)
    expected = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(tensor, expected)
    assert np.array_equal(np.asarray(tensor_to_pil(tensor[None])[0]), pixels)


def test_every_level_survives_the_round_trip():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(np.asarray(tensor_to_pil(image_to_tensor(ramp, 16)[None])[0])[..., 0], np.asarray(ramp))


def test_tensor_to_pil_clips_and_checks_its_shape():
    assert tensor_to_pil(torch.full((1, 3, 2, 2), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match=r"not \(1, 1, 2, 2\)"):
        tensor_to_pil(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("ground", ["white", "#102030", (9, 8, 7)])
def test_transparent_pixels_show_the_ground(ground):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 200, 0, 255))
    rgb = to_rgb(image, parse_color(ground))
    assert rgb.getpixel((0, 0)) == parse_color(ground)
    assert rgb.getpixel((1, 1)) == (0, 200, 0)


def test_colour_hidden_under_transparency_does_not_bleed_when_resizing():
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))  # invisible red
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    small = image_to_tensor(image, 8, (255, 255, 255))
    assert torch.equal(small[0], small[1])  # grey everywhere: no red from under the glass
    assert small.min() < -0.9 and small.max() > 0.9


def test_palette_transparency_and_half_alpha():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([1, 2, 3, 200, 100, 50])
    palette.putpixel((0, 0), 1)
    palette.info["transparency"] = 0
    rgb = to_rgb(open_image(encoded(palette, transparency=0)), (255, 255, 255))
    assert rgb.getpixel((1, 1)) == (255, 255, 255) and rgb.getpixel((0, 0)) == (200, 100, 50)
    half = to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), (255, 255, 255)).getpixel((0, 0))
    assert abs(half[0] - 127) <= 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("LA", (2, 2), (10, 255)), (10, 10, 10)),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 257 * 100 + 128, np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((2, 2), 257 * 100 + 129, np.uint16)), (101, 101, 101)),
        (Image.fromarray(np.full((2, 2), 257 * 9, np.int32)), (9, 9, 9)),
    ],
)
def test_colour_modes(image, expected):
    assert to_rgb(image).getpixel((0, 0)) == expected


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_without_an_agreed_range_are_refused(array):
    with pytest.raises(ValueError, match="range"):
        to_rgb(Image.fromarray(array))


def test_sixteen_bit_png_survives_the_file():
    image = open_image(encoded(Image.fromarray(np.full((3, 3), 257 * 42, np.uint16))))
    assert to_rgb(image).getpixel((0, 0)) == (42, 42, 42)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    from PIL import ImageOps

    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(upright))


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert open_image(encoded(Image.new("L", (7, 7)))).size == (7, 7)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="8x8 pixels"):
        open_image(encoded(Image.new("L", (8, 8))))


def test_truncated_and_foreign_files_raise():
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        open_image(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not in an image format"):
        open_image(b"not an image")


def test_extreme_aspect_ratio_needs_no_tall_intermediate():
    assert image_to_tensor(Image.new("RGB", (1, 60000), (255, 0, 0)), 64).shape == (3, 64, 64)


def test_center_crop_is_the_middle_square():
    assert crop_box(10, 4, "center", (0.4, 1.0), None) == (3, 0, 7, 4)


@pytest.mark.parametrize("crop", ["random", "resized"])
def test_random_crops_stay_inside_vary_and_repeat(crop):
    boxes = [crop_box(30, 20, crop, (0.4, 1.0), np.random.default_rng(i)) for i in range(200)]
    assert all(0 <= left < right <= 30 and 0 <= top < bottom <= 20 for left, top, right, bottom in boxes)
    assert len(set(boxes)) > 10
    assert boxes == [crop_box(30, 20, crop, (0.4, 1.0), np.random.default_rng(i)) for i in range(200)]
    areas = [(r - left) * (b - t) / 600 for left, t, r, b in boxes]
    assert min(areas) > (0.35 if crop == "resized" else 0.6)  # rounding to whole pixels may lose a little


def test_flip_mirrors_about_half_of_the_draws():
    image = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 30, (8, 1)))
    plain = image_to_tensor(image, 8)
    draws = [image_to_tensor(image, 8, flip=True, generator=np.random.default_rng(i)) for i in range(100)]
    flipped = sum(torch.equal(d, plain.flip(2)) for d in draws)
    assert flipped + sum(torch.equal(d, plain) for d in draws) == 100
    assert 30 < flipped < 70


@pytest.mark.parametrize("options", [{"crop": "random"}, {"crop": "resized"}, {"flip": True}])
def test_randomness_without_a_generator_is_refused(options):
    with pytest.raises(ValueError, match="needs a generator"):
        image_to_tensor(Image.new("RGB", (8, 8)), 8, **options)


@pytest.mark.parametrize("color", ["whitish", "#12", (1, 2, 300)])
def test_bad_colours_are_refused_on_one_line(color):
    with pytest.raises(ValueError, match="colour") as error:
        parse_color(color)
    assert "\n" not in str(error.value)
