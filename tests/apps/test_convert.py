"""`genaim convert` and official names on the command line."""

import os
from pathlib import Path

import pytest
import torch

from apps.folders import read_record
from genaim.pretrained import OFFICIAL
from genaim.pretrained.official import imagenet_classes
from tests.apps.conftest import make_model
from tests.apps.test_errors import refused
from tests.parity_sets import FOLDER

VAR_FILE, VQVAE_FILE = FOLDER / "var_a.safetensors", FOLDER / "vqvae_a.safetensors"


class RunsCode:
    """Unpickling this would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def test_a_converted_file_can_be_sampled(genaim):
    done = genaim("convert", "var", VAR_FILE, "model", "--tokenizer", VQVAE_FILE)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "model: var, 0.45M parameters"
    assert lines[1] == "images 24x24, classes 10, tokenizer in that folder"
    assert lines[2] == "look at it with: genaim sample --model model"
    assert genaim(*lines[2].split()[5:], "-n", 2).code == 0
    assert "24x24, 66 tokens each" in genaim("info", "model").out


def test_a_tokenizer_is_converted_and_then_shared(genaim):
    assert genaim("convert", "var-vqvae", VQVAE_FILE, "vq").out == "vq: multiscale_vq tokenizer, 0.31M parameters\n"
    assert genaim("convert", "var", VAR_FILE, "model", "--tokenizer", "vq").code == 0
    assert genaim("sample", "--model", "model", "-n", 1).code == 0


def test_what_cannot_be_converted_is_refused(genaim, tmp_path):
    torch.save({"weight": torch.zeros(1), "args": RunsCode()}, tmp_path / "bad.pth")
    refused(genaim("convert", "var", tmp_path / "bad.pth", "out"), tmp_path / "bad.pth", "which could run code")
    refused(genaim("convert", "vra", VAR_FILE, "out"), "'vra' is neither a family nor an official name", "'var'?")
    refused(genaim("convert", "var", "missing.pth", "out"), "'missing.pth' does not exist")
    refused(genaim("convert", "var-vqvae", VAR_FILE, "out"), "lacks the key 'encoder.conv_in.weight'")
    refused(genaim("convert", "var", VAR_FILE, VAR_FILE, "out", "--tokenizer", "nothing"), "'nothing'")
    refused(genaim("convert", "var-d16", VAR_FILE, VAR_FILE, "out"), "is made of var_d16.pth, not of 2 files")


def test_a_folder_of_other_files_is_kept(genaim, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years")
    done = genaim("convert", "var-vqvae", VQVAE_FILE, tmp_path / "thesis")
    assert done.code == 2
    assert "holds other files than a model" in done.err
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.txt"]
    done = genaim("convert", "var-vqvae", VAR_FILE, tmp_path / "thesis")
    assert "holds other files than a model" in done.err, "told only after the conversion"


@pytest.mark.parametrize("command", [["sample", "--model"], ["info"]])
def test_an_official_name_without_network(genaim, command):
    shown = genaim(*command, "var-d36")
    refused(shown, "'var-d36' cannot be downloaded", "resolve/main/var_d36.pth", "genaim convert var-d36 var_d36.pth")


def test_models_lists_official_names_without_touching_them(genaim, monkeypatch, home):
    def touched(*args: object, **kwargs: object) -> None:
        raise AssertionError("the list must not download")

    monkeypatch.setattr("genaim.pretrained.fetch.download", touched)
    cached = home / "models" / "mar-large"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("not even read")
    try:
        shown = genaim("models").out
    finally:
        (cached / "config.json").unlink()
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert set(OFFICIAL) <= rows.keys()
    assert rows["var-d36"] == ["var-d36", "var", "512x512", "2.3B", "MIT"]
    assert rows["mar-large"][-2:] == ["MIT", "yes"]
    assert rows["aim-7b"][3:5] == ["6.5B", "apple-amlr,"]


def test_classes_of_imagenet_by_name(genaim, tmp_path):
    folder = make_model(tmp_path / "imagenet", num_classes=1000, class_names=imagenet_classes())
    asked = ["--classes", "golden retriever,Cardigan Welsh Corgi", "--classes", "980"]
    done = genaim("sample", "--model", folder, "-n", 3, *asked, "--out", "out")
    assert done.code == 0, done.err
    settings = read_record(Path("out/record.json"))["settings"]
    assert settings["labels"] == [207, 264, 980]
    assert settings["names"] == ["golden retriever", "Cardigan Welsh corgi", "volcano"]
    wrong = genaim("sample", "--model", folder, "--classes", "goldn retriever", "--out", "wrong")
    assert wrong.code == 2
    assert "unknown class 'goldn retriever'; did you mean 'golden retriever'?" in wrong.err
    assert "(1000 in all); or numbers 0 to 999" in wrong.err
    assert len(wrong.err) < 1000
    shown = genaim("info", folder).out
    assert "1000: 0 tench, 1 goldfish" in shown
    assert "toilet tissue" in shown
    assert len(shown.splitlines()) < 60


def test_a_run_starts_from_a_model(genaim, recipe):
    assert genaim("train", recipe, "name=first", "steps=2").code == 0
    done = genaim("train", recipe, "name=second", "steps=2", "init=runs/first")
    assert done.code == 0, done.err
    assert "starting from the weights of 'runs/first'" in done.out
    wrong = genaim("train", recipe, "name=third", "init=runs/first", "tokenizer.codebook.size=8")
    assert wrong.code == 2
    assert wrong.err.count("\n") == 1
    assert "init 'runs/first' does not fit the recipe's model: codebook.weight is (32, 4) there and (8, 4)" in wrong.err
    assert not Path("runs/third").exists()
    assert "there is no folder 'runs/none'; did you mean" in genaim("train", recipe, "name=x", "init=runs/none").err
