"""`genaim inpaint`, `outpaint` and `edit`: results, sheet and record, and everything that is refused."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from apps.demo_uploads import read_picture as read_upload
from apps.folders import read_record
from genaim.pretrained import save_model
from tests.tiny import make_latents, make_model


@pytest.fixture
def image() -> Path:
    """An 11x9 picture with alpha, in the working folder."""
    array = np.random.default_rng(0).integers(0, 256, (9, 11, 4), dtype=np.uint8)
    Image.fromarray(array, "RGBA").save("picture.png")
    return Path("picture.png")


def save_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Path:
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save("mask.png")
    return Path("mask.png")


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.png")}


def test_inpaint_keeps_the_rest_and_its_command_repeats_it(genaim, model, image):
    mask = save_mask((11, 9), (2, 3, 7, 8))
    done = genaim("inpaint", image, "--mask", mask, "--model", model, "-n", 3, "--class", "dog", "--seed", 4)
    assert done.code == 0, done.err
    folder = Path("samples/picture-inpaint-seed4")
    assert done.out.splitlines()[-1] == str(folder / "sheet.png")
    assert sorted(p.name for p in folder.iterdir()) == [*(f"{i:05d}.png" for i in range(3)), "record.json", "sheet.png"]
    before, hidden = np.asarray(Image.open(image)), np.asarray(Image.open(mask)) > 0
    for number in range(3):
        after = np.asarray(Image.open(folder / f"{number:05d}.png"))
        assert (after[~hidden] == before[~hidden]).all() and (after[..., 3] == before[..., 3]).all()
        assert (after[hidden] != before[hidden]).any()
    record = read_record(folder / "record.json")
    assert record["settings"]["names"] == ["Dog"] and record["settings"]["task"] == "inpaint"
    assert record["metrics"]["diversity"] > 0
    command = shlex.split(record["command"])
    assert command[:2] == ["genaim", "inpaint"]
    again = genaim(*command[1:], "--out", "again")
    assert again.code == 0, again.err
    assert content(Path("again")) == content(folder)
    assert genaim(*command[1:]).code == 0, "the same command replaces its own results"
    assert [p.name for p in Path("samples").iterdir()] == [folder.name]


def test_box_is_a_mask(genaim, model, image):
    mask = save_mask((11, 9), (2, 3, 7, 8))
    for out, where in {"mask": ["--mask", mask], "box": ["--box", "2,3,5,5"]}.items():
        assert genaim("inpaint", image, *where, "--model", model, "-n", 1, "--out", out).code == 0
    assert content(Path("mask")) == content(Path("box"))
    assert shlex.split(read_record(Path("box/record.json"))["command"])[3:5] == ["--box", "2,3,5,5"]


def test_outpaint_and_edit(genaim, model, image):
    done = genaim("outpaint", image, "--left", 5, "--bottom", 2, "--model", model, "-n", 2)
    assert done.code == 0, done.err
    result = Image.open("samples/picture-outpaint-seed0/00001.png")
    assert result.size == (16, 11)
    assert result.crop((5, 0, 16, 9)).tobytes() == Image.open(image).tobytes()
    done = genaim("edit", image, "--class", 2, "--box", "0,0,4,4", "--strength", 0.5, "--model", model, "-n", 2)
    assert done.code == 0, done.err
    edited = np.asarray(Image.open("samples/picture-edit-seed0/00000.png"))
    assert (edited[4:] == np.asarray(Image.open(image))[4:]).all()
    command = shlex.split(read_record(Path("samples/picture-edit-seed0/record.json"))["command"])
    assert genaim(*command[1:], "--out", "again").code == 0
    assert content(Path("again")) == content(Path("samples/picture-edit-seed0"))


def test_other_colour_modes(genaim, model):
    for mode, name in {"CMYK": "c.tif", "L": "l.png", "1": "b.png", "P": "p.gif"}.items():
        Image.new(mode, (9, 9)).save(name)
        done = genaim("inpaint", name, "--box", "1,1,3,3", "--model", model, "-n", 1, "--out", mode)
        assert done.code == 0, done.err
    assert Image.open("CMYK/00000.tif").mode == "CMYK"
    assert Image.open("1/00000.png").mode == "L" and Image.open("P/00000.png").mode == "RGB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inpaint", "picture.png"], "give --mask FILE"),
        (["inpaint", "picture.png", "--mask", "m.png", "--box", "0,0,1,1"], "leave one out"),
        (["inpaint", "picture.png", "--box", "0,0,5"], "four whole numbers"),
        (["inpaint", "picture.png", "--box", "9,0,5,5"], "leaves the picture of 11x9"),
        (["inpaint", "picture.png", "--box", "9,0,0,5"], "is empty; give a width"),
        (["inpaint", "picture.png", "--mask", "small.png"], "the mask is 4x4, but the picture 11x9"),
        (["inpaint", "picture.png", "--mask", "black.png"], "the mask is empty"),
        (["inpaint", "picture.png", "--box", "0,0,1,1", "--class", "Horse"], "unknown class 'Horse'"),
        (["inpaint", "picture.png", "--box", "0,0,1,1", "--class", "0,1"], "names 2 classes; give one"),
        (["inpaint", "picture.png", "--box", "0,0,1,1", "-n", "0"], "-n is 0; it must be 1 to"),
        (["inpaint", "text.png", "--box", "0,0,1,1"], "'text.png' cannot be read as a picture"),
        (["inpaint", "cut.png", "--box", "0,0,1,1"], "'cut.png' cannot be read as a picture"),
        (["inpaint", "missing.png", "--box", "0,0,1,1"], "'missing.png': No such file"),
        (["inpaint", "deep.png", "--box", "0,0,1,1"], "'deep.png': the picture has 16 bits a channel"),
        (["inpaint", "moving.gif", "--box", "0,0,1,1"], "'moving.gif': the picture is an animation of 2 frames"),
        (["inpaint", "bomb.png", "--box", "0,0,1,1"], "Image size (400000000 pixels) exceeds limit"),
        (["inpaint", "clear.png", "--box", "0,0,1,1"], "transparent pixels only"),
        (["inpaint", "picture.png", "--box", "0,0,1,1", "--guidance", "3"], "guidance 3 needs a class"),
        (["sample", "--from-record", "record.json"], "repeat it by its command: genaim edit"),
        (["outpaint", "picture.png"], "give --left, --top, --right or --bottom"),
        (["outpaint", "picture.png", "--left", "-3"], "--left"),
        (["edit", "picture.png"], "--class"),
        (["edit", "picture.png", "--class", "1", "--strength", "2"], "--strength"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(genaim, model, image, arguments, message):
    Image.new("L", (4, 4), 255).save("small.png")
    Image.new("L", (11, 9)).save("black.png")
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(image.read_bytes()[:200])
    Image.new("I;16", (9, 9)).save("deep.png")
    Path("record.json").write_text(
        '{"format": "genaim sample 1", "settings": {"task": "edit"}, "command": "genaim edit a.png"}'
    )
    Image.new("RGBA", (9, 9)).save("clear.png")
    Image.new("L", (9, 9)).save("moving.gif", save_all=True, append_images=[Image.new("L", (9, 9), 255)])
    if "bomb.png" in arguments:
        Image.new("1", (20000, 20000)).save("bomb.png")
    done = genaim(*arguments, *(["--model", model] if arguments[0] != "sample" else []))
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert not list(Path().glob("samples/*")) and not list(Path().glob(".*"))
    assert len(done.err.splitlines()) <= 2


def test_a_single_pixel(genaim, model):
    Image.new("RGB", (1, 1)).save("dot.png")
    done = genaim("inpaint", "dot.png", "--box", "0,0,1,1", "--model", model, "-n", 1)
    assert done.code == 0, done.err


def test_upscale_gives_the_picture_again_when_reduced(genaim, model):
    ramp = np.linspace(0, 255, 11 * 9).reshape(9, 11).astype(np.uint8)
    image = Path("picture.png")
    Image.fromarray(np.dstack([ramp, ramp[::-1], ramp, np.full_like(ramp, 255)]), "RGBA").save(image)
    done = genaim("upscale", image, "--factor", 2, "--model", model, "-n", 2)
    assert done.code == 0, done.err
    folder = Path("samples/picture-upscale-seed0")
    first, second = (Image.open(folder / f"0000{number}.png") for number in (0, 1))
    assert first.size == (22, 18) and first.mode == "RGBA"
    assert first.tobytes() != second.tobytes()
    record = read_record(folder / "record.json")
    assert record["metrics"]["consistency_error"] <= 1 and record["metrics"]["diversity"] > 0
    command = shlex.split(record["command"])
    assert genaim(*command[1:], "--out", "again").code == 0
    assert content(Path("again")) == content(folder)
    done = genaim("upscale", image, "--factor", 3, "--model", model)
    assert done.code == 2 and "factor 3 does not divide" in done.err


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_upscaling_lost_the_colour_profile(genaim, model, mode):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (9, 9), "teal").convert(mode).save("profiled.png", icc_profile=profile)
    for task, *options in (
        ("upscale", "--factor", 2),
        ("inpaint", "--box", "1,1,3,3"),
        ("outpaint", "--left", 2),
        ("edit", "--class", 1),
    ):
        done = genaim(task, "profiled.png", *options, "--model", model, "-n", 1, "--out", "out")
        assert done.code == 0, done.err
        assert Image.open("out/00000.png").info["icc_profile"] == profile


def test_a_profile_of_inks_is_no_profile_of_rgb(genaim, model):
    Image.new("CMYK", (9, 9)).save("inks.tif", icc_profile=b"inks")
    assert "icc_profile" not in read_upload(Path("inks.tif")).info
    done = genaim("upscale", "inks.tif", "--factor", 2, "--model", model, "--out", "out")
    assert done.code == 0, done.err
    assert "icc_profile" not in Image.open("out/00000.tif").info


def test_figures_are_those_of_the_results_and_not_of_the_sheet(genaim, model):
    """The sheet shrank the results before they were measured."""
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    Image.fromarray(np.dstack([np.tile(ramp, (300, 1))] * 3)).save("ramp.png")
    done = genaim("inpaint", "ramp.png", "--box", "100,100,50,50", "--model", model, "-n", 2)
    assert done.code == 0, done.err
    folder = Path("samples/ramp-inpaint-seed0")
    first, second = (np.asarray(Image.open(folder / f"0000{i}.png"), dtype=float) for i in (0, 1))
    assert first.shape == (300, 300, 3)
    inside = np.square(first - second)[100:150, 100:150].mean() ** 0.5
    assert read_record(folder / "record.json")["metrics"]["diversity"] == pytest.approx(inside, abs=0.01)
    assert read_record(folder / "record.json")["settings"]["guidance_scale"] == 1.0, "there is no class"


def test_upscaling_shows_one_bar_for_all_tiles(genaim, model):
    Image.new("RGB", (12, 5)).save("wide.png")
    done = genaim("upscale", "wide.png", "--factor", 2, "--model", model, "-n", 2, "--batch-size", 1)
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("enlarging tiles")]
    totals = {line.split()[2].split("/")[1] for line in lines}
    assert len(totals) == 1 and lines[-1].split()[2] == f"{max(totals)}/{max(totals)}"


@pytest.mark.parametrize("kind", ["var", "causal"])
def test_outpainting_showed_a_bar_for_every_piece(genaim, model, tmp_path, kind):
    if kind == "causal":  # whose steps differ between pieces
        save_model(tmp_path / "causal", make_model("causal", make_latents(), "mixture"))
        model = tmp_path / "causal"
    Image.new("RGB", (40, 20)).save("wide.png")
    done = genaim("outpaint", "wide.png", "--left", 5, "--bottom", 3, "--model", model, "-n", 2)
    assert done.code == 0, done.err
    lines = [line.split()[1] for line in done.err.splitlines() if line.startswith("painting")]
    assert len({line.split("/")[1] for line in lines}) == 1
    done, total = map(int, lines[-1].split("/"))
    assert done == total > 30 and lines.count(lines[-1]) == 1


def test_a_picture_that_no_result_reduces_to_is_told(genaim, model):
    square = Image.new("RGB", (8, 8), "white")
    square.paste((255, 0, 0), (2, 2, 6, 6))
    square.save("square.png")
    done = genaim("upscale", "square.png", "--factor", 2, "--model", model)
    assert done.code == 0, done.err
    notes = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "Warning" not in done.err
