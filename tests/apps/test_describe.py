"""Help, models, info and keys: what a newcomer reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import genaim as package
import genaim.pretrained.names as names
from apps.describe import config_keys
from genaim.config import recipes
from genaim.training.config import RUNS

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("sample", "train", "models", "info", "convert", "bench")


def test_help_needs_no_library_of_ours():
    code = "import sys, apps.cli; print(sorted({'torch', 'numpy', 'genaim', 'PIL', 'yaml'} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_version(genaim):
    assert genaim("--version").out == f"genaim {package.__version__}\n"
    for arguments in ([], ["--help"], ["-h"]):
        shown = genaim(*arguments)
        assert shown.code == 0
        assert all(command in shown.out for command in COMMANDS)
    assert all(genaim(command, "--help").code == 0 for command in COMMANDS)


def test_models_lists_bundled_models_and_recipes(genaim, model, monkeypatch, tmp_path):
    (tmp_path / "bundled").mkdir()
    monkeypatch.setattr(names, "BUNDLED", tmp_path / "bundled")
    assert "No model is bundled" in genaim("models").out
    (tmp_path / "bundled" / "tiny").symlink_to(model)
    (tmp_path / "bundled" / "tiny-vq").symlink_to(model / "tokenizer")
    card = model / "README.md"
    card.write_text("---\nlicense: cc0-1.0\n---\n# Tiny\n")
    try:
        shown = genaim("models").out
    finally:
        card.unlink()
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert rows["tiny"][1:4] == ["var", "8x8", "3"]
    assert rows["tiny"][-1] == "cc0-1.0"
    assert rows["tiny-vq"][1:4] == ["multiscale_vq", "tokenizer", "8x8"]
    assert set(recipes()) <= rows.keys()


def test_info(genaim, model):
    shown = genaim("info", model).out
    for text in (
        "8x8, 21 tokens each",
        "3: 0 Cat, 1 Dog, 2 Fish, tropical",
        "guidance_scale 1.5",
        "top_p off",
        "width: 32",
    ):
        assert text in shown
    assert "tokenizer" in genaim("info", model / "tokenizer").out


def test_train_without_a_recipe_lists_them(genaim, recipe):
    shown = genaim("train").out
    assert all(name in shown for name in recipes())


def test_keys_need_no_data(genaim, monkeypatch):
    monkeypatch.setattr("genaim.config.data_root", lambda: None)
    monkeypatch.delenv("GENAIM_DATA", raising=False)
    done = genaim("train", "mnist-vq", "--keys")
    assert done.code == 0, done.err
    assert "${GENAIM_DATA}/mnist" in done.out


def test_keys_show_the_values_of_a_recipe(genaim, recipe):
    shown = genaim("train", recipe, "optimizer.lr=0.5", "--keys").out
    assert "optimizer.lr = 0.5\n    Peak learning rate." in shown
    assert "tokenizer.patch_nums = [1, 2, 4]\n" in shown
    assert "data.train.path = " in shown
    assert "[cosine | constant]" in shown
    assert not Path("runs").exists()
    everything = genaim("train", "--keys").out
    assert "steps = (required)" in everything
    assert "model.depth = 16" in everything


@pytest.mark.parametrize("kind", RUNS)
def test_every_key_has_a_meaning(kind):
    assert [key for key, _, meaning in config_keys(RUNS[kind], None) if not meaning] == []
