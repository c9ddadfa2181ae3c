"""Generators over latents: the scale is measured once, and moments train as images do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from genaim.data import DataConfig, build_dataset, cache_moments
from genaim.pretrained import load_generator, load_tokenizer, save_model
from genaim.tokenizers import LatentTokenizer
from tests.pretrained.test_taef2 import write_files
from tests.tiny import HEADS, SIZES, make_latents, merge
from tests.training.runs import make_images, start
from tests.training.runs import recipe as any_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images, and the folder of a KL autoencoder without a latent scale."""
    make_images(tmp_path / "images")
    save_latents(tmp_path)
    return tmp_path


def save_latents(root: Path, **changes: Any) -> LatentTokenizer:
    tokenizer = make_latents(image_size=16, latent_scale=None, **changes)
    save_model(root / "tokenizer", tokenizer)
    return tokenizer


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    """A run of 6 steps of a MAR over 8x8 tokens."""
    run = any_recipe(root, "generator")
    run["model"] = {"kind": "mar", "width": 16, "num_heads": 2, "head": HEADS["gaussian_unit"], **SIZES["mar"]}
    return merge(run, changes)


def scale_of(folder: Path) -> float:
    """The scale in a run's recipe, which is that of its tokenizer and of its model."""
    scale = yaml.safe_load((folder / "config.yaml").read_text())["latent_scale"]
    for tokenizer in (load_tokenizer(str(folder / "tokenizer")), load_generator(str(folder)).tokenizer):
        assert isinstance(tokenizer, LatentTokenizer)
        assert tokenizer.latent_scale.item() == scale
    return scale


def test_a_run_measures_the_scale_that_its_tokenizer_lacks(root: Path) -> None:
    folder, progress = start(recipe(root))
    scale = scale_of(folder)
    assert f"latent scale {scale:.4f}, measured on 256 training images" in progress.lines
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    data = build_dataset(DataConfig(train={"path": str(root / "images")}, image_size=16), "train")
    images = torch.stack([data.sample(i, (0,)).image for i in range(len(data))])
    with torch.no_grad():
        mean, std = tokenizer.posterior(images)
    size = (mean.square() + std.square()).mean().sqrt().item()
    assert scale == pytest.approx(1 / size, rel=0.01)  # 256 draws of 24 images: not equally often each


def test_the_scale_is_that_of_the_classes_as_they_are_drawn(root: Path) -> None:
    """One picture of a class, a flat one, is half of what a balanced run learns from."""
    first, *others = sorted((root / "images" / "above").iterdir())
    Image.new("RGB", (16, 16)).save(first)
    for path in others:
        path.unlink()
    folder, _ = start(recipe(root, steps=1, data={"class_balance": 1.0}))
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    data = build_dataset(DataConfig(train={"path": str(root / "images")}, image_size=16), "train")
    images = torch.stack([data.sample(i, (0,)).image for i in range(len(data))])
    with torch.no_grad():
        mean, std = tokenizer.posterior(images)
    rare, common = (mean.square() + std.square()).flatten(1).mean(1).split([1, len(data) - 1])
    assert scale_of(folder) == pytest.approx(((rare + common.mean()) / 2).rsqrt().item(), rel=1e-3)


def test_a_resumed_run_keeps_its_scale(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = start(recipe(root, name="whole"))
    with pytest.raises(RuntimeError, match="crash"):
        start(recipe(root, name="parts"), 3)
    monkeypatch.setattr(LatentTokenizer, "measure_scale", None)  # it is not called again
    parts, progress = start(recipe(root, name="parts"))
    assert scale_of(parts) == scale_of(whole)
    assert not any("latent scale" in line for line in progress.lines)
    assert any("continuing" in line for line in progress.lines)


def test_two_processes_measure_as_one(root: Path) -> None:
    one, _ = start(recipe(root, name="one"))
    (root / "run.json").write_text(json.dumps(recipe(root, name="two")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "tests.training.runs", str(root / "run.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert scale_of(root / "runs" / "two") == scale_of(one)
    assert len(list((root / "cache").iterdir())) == 1  # one token cache serves every process of both


def test_a_scale_can_be_given_but_not_twice(root: Path) -> None:
    folder, progress = start(recipe(root, latent_scale=0.25))
    assert scale_of(folder) == 0.25
    assert not any("latent scale" in line for line in progress.lines)
    save_model(root / "tokenizer", make_latents(image_size=16, latent_scale=0.5))
    with pytest.raises(ValueError, match=r"latent_scale=0\.25 is for a tokenizer without one; remove it"):
        start(recipe(root, name="twice", latent_scale=0.25))


def test_a_run_that_has_saved_nothing_takes_another_tokenizer(root: Path) -> None:
    """Its copy of the tokenizer and its token cache are new, although the weights are the same."""
    with pytest.raises(RuntimeError, match="crash"):
        start(recipe(root), 1)
    save_latents(root, patch_size=2)
    folder, _ = start(recipe(root))
    assert load_generator(str(folder)).tokenizer.num_tokens == 16
    scale_of(folder)


def test_published_weights_train_from_their_files(root: Path) -> None:
    """The recipe names a source; the run folder does not need it again."""
    (root / "taef2").mkdir()
    write_files(root / "taef2")
    tokenizer = {"kind": "taef2", "source": str(root / "taef2"), "image_size": 16}
    folder, _ = start(recipe(root) | {"tokenizer": tokenizer})
    (root / "taef2").rename(root / "elsewhere")
    assert scale_of(folder) > 0
    assert load_generator(str(folder)).tokenizer.grid == (2, 2)
    (root / "elsewhere").rename(root / "taef2")
    with pytest.raises(ValueError, match=r"tokenizer 'taef2' makes images of 32 pixels, but data\.image_size is 16"):
        start(recipe(root, name="large") | {"tokenizer": tokenizer | {"image_size": 32}})


def cached(root: Path) -> dict[str, Any]:
    """The recipe's changes for training from moments of the images."""
    images = build_dataset(DataConfig(train={"path": str(root / "images")}, image_size=16), "train")
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    assert isinstance(tokenizer, LatentTokenizer)
    cache_moments(images, tokenizer.moments, root / "moments")
    return {"data": {"train": {"path": str(root / "moments")}, "val": {"path": str(root / "moments")}}}


def test_moments_train_as_images_do(root: Path) -> None:
    """The files keep names and so their order: the same draws give the same weights, up to rounding."""
    folders = [start(recipe(root, name="images"))[0], start(recipe(root, name="moments", **cached(root)))[0]]
    assert scale_of(folders[0]) == pytest.approx(scale_of(folders[1]), rel=1e-5)
    models = [load_generator(str(folder)) for folder in folders]
    assert models[1].config.class_names == ("above", "below")
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    losses = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1])["val/loss"] for f in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_moments_that_cannot_be_trained_on_are_refused(root: Path) -> None:
    changes = cached(root)
    with pytest.raises(ValueError, match="views=2 needs images"):
        start(recipe(root, views=2, **changes))
    with pytest.raises(ValueError, match="low_res needs images to reduce; cached moments have none"):
        start(recipe(root, model={"low_res": 4}, **changes))
    save_latents(root, autoencoder=make_latents().config.autoencoder.model_copy(update={"latent_channels": 2}))
    with pytest.raises(ValueError, match=r"none of \d+ images in a row could be read.*\(6, 8, 8\) instead of the"):
        start(recipe(root, latent_scale=1.0, **changes))
    message = "cached moments train generators over an autoencoder's latents only; give the images"
    with pytest.raises(ValueError, match=message):
        start(merge(any_recipe(root, "tokenizer"), changes))
    with pytest.raises(ValueError, match=message):
        start(recipe(root, **changes) | {"tokenizer": {"kind": "patches", "image_size": 16, "patch_size": 2}})
