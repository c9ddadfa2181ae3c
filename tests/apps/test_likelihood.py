"""`genaim evaluate likelihood`: figures of whole splits, records, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from genaim.pretrained import save_model
from tests.tiny import HEADS, make_latents, make_model, make_patches


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven 8x8 pictures in two classes."""
    generator = torch.Generator().manual_seed(0)
    for number in range(7):
        pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        path = tmp_path / "pictures" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def pixel_model(tmp_path: Path) -> Path:
    """A causal model of 8x8 grey pictures in two classes."""
    model = make_model("causal", make_patches(), "logistic", num_classes=2, class_names=("dog", "cat"))
    save_model(tmp_path / "pixel-model", model)
    return tmp_path / "pixel-model"


def test_likelihood_of_a_folder(genaim, pixel_model, pictures):
    done = genaim("evaluate", "likelihood", pixel_model, "--data", pictures, "--json", "new/found.json")
    assert done.code == 0, done.err
    assert "7 images; 7 scored, 7 with their class told" in done.out
    assert "8-bit grey pixels, exact" in done.out
    assert done.out.splitlines()[-1] == "written: new/found.json"
    record = json.loads(Path("new/found.json").read_text())
    assert record["format"] == "genaim likelihood 1"
    assert (record["settings"]["dtype"], record["settings"]["split"]) == ("float32", "val")
    bits = record["likelihood"]["bits_per_dimension"]
    assert f"{bits:.4f}, exact, over 64 values" in done.out
    again = genaim("evaluate", "likelihood", pixel_model, "--data", pictures, "--batch-size", 2, "--json", "b.json")
    assert again.code == 0
    assert json.loads(Path("b.json").read_text())["likelihood"]["bits_per_dimension"] == pytest.approx(bits, rel=1e-5)
    part = genaim("evaluate", "likelihood", pixel_model, "--data", f"{{path: {pictures}}}", "-n", 3, "--no-classes")
    assert "3 of pictures, 7 images; 3 scored, 0 with their class told" in part.out
    assert sorted(p.name for p in Path().iterdir()) == ["b.json", "new"]


def test_likelihood_of_a_run_takes_the_images_of_its_recipe(genaim, recipe, tmp_path):
    assert genaim("train", recipe, "steps=1").code == 0
    text = recipe.read_text().replace("squares-vq", "squares-var").replace("kind: tokenizer", "kind: generator")
    lines = [line for line in text.splitlines() if not line.startswith("tokenizer:")]
    generator = tmp_path / "squares-var.yaml"
    model = "{kind: var, depth: 1, width: 16, num_heads: 2}"
    generator.write_text("\n".join([*lines, "tokenizer: runs/squares-vq", f"model: {model}", ""]))
    assert genaim("train", generator, "steps=2").code == 0
    done = genaim("evaluate", "likelihood", "runs/squares-var")
    assert done.code == 0, done.err
    assert "12 scored, 12 with their class told" in done.out and "scales of side 1, 2, 4" in done.out
    validated = [json.loads(line) for line in Path("runs/squares-var/metrics.jsonl").read_text().splitlines()]
    loss = next(row["val/loss"] for row in validated if "val/loss" in row)
    assert f"nats per token  {loss:.3f}" in done.out
    assert genaim("evaluate", "likelihood", "runs/squares-var", "--data", generator).out == done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL"], "does not say which images it was trained on; give --data"),
        (["MODEL", "--data", "nowhere"], "'nowhere' does not exist"),
        (["MODEL", "--data", "{path: nowhere}"], "'nowhere' does not exist"),
        (["MODEL", "--data", "{path: ["], "is not a YAML mapping"),
        (["MODEL", "--data", "{paht: x}"], "unknown key 'paht'; did you mean 'path'?"),
        (["MODEL", "--data", "PICTURES", "--batch-size", "0"], "--batch-size is 0"),
        (["MODEL", "--data", "PICTURES", "--count", "0"], "--count"),
        (["MODEL", "--data", "PICTURES", "--split", "best"], "--split"),
        (["MODEL", "--data", "PICTURES", "--device", "tpu"], "auto, cpu, cuda or mps"),
        (["MODEL", "--data", "PICTURES/cat"], None),
        (["emoji-mra"], "'emoji-mra'"),
        (["emoji-vq"], "is a tokenizer, not a generator"),
    ],
)
def test_what_likelihood_refuses(genaim, pixel_model, pictures, arguments, words):
    named = [str(a).replace("MODEL", str(pixel_model)).replace("PICTURES", str(pictures)) for a in arguments]
    done = genaim("evaluate", "likelihood", *named)
    if words is None:  # a folder without classes: the model is told none
        assert done.code == 0 and "3 scored, 0 with their class told" in done.out
        return
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert words in done.err


def test_a_model_without_a_density_is_refused_before_its_data(genaim, tmp_path):
    save_model(tmp_path / "flow", make_model("causal", make_latents(), "flow"))
    done = genaim("evaluate", "likelihood", tmp_path / "flow", "--data", "nowhere")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"'{tmp_path / 'flow'}' (causal with a {HEADS['flow']['kind']} head) has no exact density" in done.err


def test_a_class_that_the_model_has_not(genaim, pixel_model, pictures):
    (pictures / "cat").rename(pictures / "cow")
    done = genaim("evaluate", "likelihood", pixel_model, "--data", pictures)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "class 'cow' is not one of the training classes" in done.err
