"""A run becomes a bundled model that draws the same pictures, with a card that tells where it comes from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import genaim.config
from apps import bundle as bundling
from apps.bundle import app
from apps.describe import licence
from genaim.models import VAR
from genaim.pretrained import load_generator, load_tokenizer, names, save_model
from genaim.training.checkpoint import save_checkpoint
from genaim.training.config import parse_run
from samplers import generate
from tests.evaluation.digits import random_var
from tests.tiny import make_var

STEPS = 40


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data, recipes and an empty folder of bundled models."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 18)):
        for i in range(count):
            path = tmp_path / "noto_emoji" / split / f"class{i % 3}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "recipes").mkdir()
    monkeypatch.setattr(genaim.config, "RECIPES", (tmp_path / "recipes",))
    monkeypatch.setattr(names, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv("GENAIM_DATA", str(tmp_path))
    return tmp_path


def make_run(root: Path, kind: str, model: VAR, folder: str = "noto_emoji", steps: int = STEPS) -> Path:
    """A finished run folder, and its recipe, as training would leave them."""
    data = {"path": f"${{GENAIM_DATA}}/{folder}", "format": "folder"}
    recipe = {
        "kind": kind,
        "name": f"tiny-{kind}",
        "data": {"train": data, "val": {**data, "split": "test"}, "image_size": 16},
        "steps": steps,
        "batch_size": 8,
    }
    if kind == "generator":
        recipe |= {
            "tokenizer": "runs/tiny-tokenizer",
            "model": {"kind": "var", "depth": 2, "width": 32, "num_heads": 4},
        }
    else:
        recipe |= {"tokenizer": model.tokenizer.config.model_dump(mode="json")}
    path = root / "recipes" / f"tiny-{kind}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    config = parse_run(genaim.config.load_config(path), "test").model_dump(mode="json")
    run = root / "runs" / f"tiny-{kind}"
    run.mkdir(parents=True)
    if kind == "generator":
        config["model"] = model.config.model_dump(mode="json")
        save_model(run / "tokenizer", model.tokenizer)
        weights = model.state_dict_without_tokenizer()
    else:
        weights = model.tokenizer.state_dict()
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    save_checkpoint(run, STEPS, {"weights": weights, "ema": weights}, {"loader": {}})
    rows = [{"step": s, "train/seconds": r} for s, r in ((20, 200.0), (40, 300.0))]
    rows.append({"step": 40, "val/loss": 2.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def bundle(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def test_a_bundled_generator_draws_the_same_pictures(root: Path) -> None:
    model = random_var(16, 3)
    run = make_run(root, "generator", model)
    bundle(run, "tiny", "--guidance", 2, "--top-k", 8)
    exported = load_generator("tiny")
    defaults = exported.config.sampling
    assert (defaults.guidance_scale, defaults.temperature, defaults.top_k, defaults.top_p) == (2.0, 1.0, 8, None)
    labels = torch.tensor([0, 1, 2, 0])
    for key, value in model.state_dict().items():  # float16 keeps 11 bits
        torch.testing.assert_close(exported.state_dict()[key], value, rtol=2**-11, atol=1e-7)
    model.config = model.config.model_copy(update={"sampling": defaults})
    ours = generate(model, labels, seed=4)  # no two best codes of this seed are as near as the rounding
    theirs = generate(exported, labels, seed=4)
    assert (ours - theirs).abs().max() < 0.02
    assert not list(root.glob("bundled/.*")) + list(root.glob(".bundled*"))


def test_the_card_tells_where_the_model_comes_from(root: Path) -> None:
    run = make_run(root, "generator", random_var(16, 3))
    bundle(run, "tiny", "--hardware", "a slide rule", "--notes", "## Results\n\nAgreement 99%.")
    folder = root / "bundled" / "tiny"
    card = (folder / "README.md").read_text()
    assert licence(folder) == "apache-2.0"
    for words in (
        "Noto emoji",
        "`genaim train tiny-generator`",
        "a slide rule",
        "2.5000 nats per token, after step 40",
        "mean over the 18 images of the test split",
        "genaim sample --model tiny -n 48 --seed 0",
        "samples.png",
        "neighbours.png",
        "L2 distance",
        "about 5 minutes",
        "Agreement 99%.",
    ):
        assert words in card
    assert str(root) not in card
    sheet = Image.open(folder / "neighbours.png")
    assert sheet.width == 8 * (16 * 4 + 2) + 2  # two samples and their neighbours in a row, enlarged four times
    assert sheet.height == 8 * (16 * 4 + 2) + 2


def test_a_shared_tokenizer_is_named_and_must_be_the_same(root: Path) -> None:
    model = random_var(16, 3)
    bundle(make_run(root, "tokenizer", model), "tiny-vq")
    card = (root / "bundled" / "tiny-vq" / "README.md").read_text()
    assert "reconstructions.png" in card
    assert "neighbours.png" not in card
    assert load_tokenizer("tiny-vq").image_size == 16
    run = make_run(root, "generator", model)
    bundle(run, "tiny", "--tokenizer", "tiny-vq")
    assert not (root / "bundled" / "tiny" / "tokenizer").exists()
    assert load_generator("tiny").tokenizer.image_size == 16
    save_model(root / "bundled" / "tiny-vq", random_var(16, 3, shift=1.0).tokenizer)
    with pytest.raises(ValueError, match="not the one that the run was trained with"):
        bundle(run, "again", "--tokenizer", "tiny-vq")
    with pytest.raises(ValueError, match="'tiny-v' is not bundled"):
        bundle(run, "again", "--tokenizer", "tiny-v")


def test_oversize_is_refused_and_leaves_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(root, "generator", random_var(16, 3))
    bundle(run, "tiny")
    before = {p: p.read_bytes() for p in (root / "bundled").rglob("*.*")}
    size = (root / "bundled" / "tiny" / "model.safetensors").stat().st_size
    monkeypatch.setitem(bundling.MAX_BYTES, "model", size - 1)
    with pytest.raises(ValueError, match=r"the model's weights take .* MB"):
        bundle(run, "tiny")
    monkeypatch.setitem(bundling.MAX_BYTES, "model", size)
    monkeypatch.setitem(bundling.MAX_BYTES, "tokenizer", 1000)
    with pytest.raises(ValueError, match=r"the tokenizer's weights take .* MB"):
        bundle(run, "tiny")
    assert {p: p.read_bytes() for p in (root / "bundled").rglob("*.*")} == before
    assert not list(root.glob(".bundled*"))


@pytest.mark.parametrize("value", [1e5, float("inf"), float("nan")])
def test_weights_that_float16_cannot_hold_are_refused(root: Path, value: float) -> None:
    model = random_var(16, 3)
    with torch.no_grad():
        model.token_embed.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"'token_embed.weight' reaches .* but float16 ends at 65504"):
        bundle(make_run(root, "generator", model), "tiny")
    assert not (root / "bundled").exists()


def test_a_changed_recipe_shows_in_the_command(root: Path) -> None:
    run = make_run(root, "generator", random_var(16, 3), steps=100)
    recipe = root / "recipes" / "tiny-generator.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 100", "steps: 300"))
    bundle(run, "tiny")
    card = (root / "bundled" / "tiny" / "README.md").read_text()
    assert "`genaim train tiny-generator steps=100`" in card
    assert "40 steps (of 100 planned)" in card


def test_what_cannot_be_described_is_refused(root: Path) -> None:
    model = random_var(16, 3)
    run = make_run(root, "generator", model)
    for words, message in (
        ([run, "tiny", "--recipe", "other"], "recipe 'other' is neither"),
        ([run, "tiny", "--recipe", root / "recipes" / "tiny-generator.yaml"], "a path of this machine"),
        ([run, "tiny", "--dtype", "int8"], "unknown dtype 'int8'"),
        ([root / "recipes", "tiny"], "is not a run folder"),
        ([make_run(root, "tokenizer", model), "tiny", "--guidance", "2"], "which is not sampled"),
    ):
        with pytest.raises(ValueError, match=message):
            bundle(*words)
    encoder = {"image_size": 16, "patch_size": 4, "width": 16, "num_heads": 2}
    recipe = yaml.safe_load((root / "recipes" / "tiny-tokenizer.yaml").read_text())
    del recipe["tokenizer"]
    (root / "features").mkdir()
    (root / "features" / "config.yaml").write_text(yaml.safe_dump({**recipe, "kind": "encoder", "model": encoder}))
    with pytest.raises(ValueError, match="is an encoder, which has no samples to show"):
        bundle(root / "features", "tiny")
    (root / "noto_emoji").rename(root / "holidays")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("noto_emoji", "holidays"))
    with pytest.raises(ValueError, match="licence of data 'holidays' is not known"):
        bundle(run, "tiny")
    assert not (root / "bundled").exists()


def test_card_of_a_model_that_enlarges(root: Path) -> None:
    """It draws nothing by itself: held-out images are enlarged from their reductions."""
    model = make_var(random_var(16, 3).tokenizer, num_classes=0, low_res=8)
    run = make_run(root, "generator", model)
    bundle(run, "sr")
    folder = root / "bundled" / "sr"
    card = (folder / "README.md").read_text()
    assert "Enlarges 8x8 pixels to 16x16" in card and "where PIL's bicubic resize reaches" in card
    assert (folder / "enlarged.png").exists() and not (folder / "samples.png").exists()
    assert load_generator("sr").config.low_res == 8
