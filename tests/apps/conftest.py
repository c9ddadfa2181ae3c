"""A tiny random model on disk, a recipe, and the command line run in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.cli import main
from genaim.pretrained import save_model
from tests.tiny import TOKENIZER, make_var

CLASSES = ("Cat", "Dog", "Fish, tropical")


@dataclass
class Outcome:
    """What a command left: its exit status and what it printed."""

    code: int
    out: str
    err: str


Genaim = Callable[..., Outcome]


@pytest.fixture
def genaim(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Genaim:
    """Runs ``genaim ARGUMENTS`` in ``tmp_path/work``."""
    monkeypatch.delenv("GENAIM_TRACEBACK", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["genaim", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(a) for a in arguments])
        printed = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return Outcome(exit.value.code, printed.out, printed.err)

    return run


def make_model(folder: Path, **config: object) -> Path:
    """Saves a VAR of 8x8 images with random weights, large enough that classes and options matter."""
    model = make_var(**{"num_classes": 0, **config})
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    save_model(folder, model)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a class-conditional model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return make_model(folder, num_classes=3, class_names=CLASSES, sampling={"guidance_scale": 1.5, "top_k": 20})


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model without classes."""
    return make_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty 8x8 pictures in three classes."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    generator = np.random.default_rng(0)
    for number in range(30):
        path = folder / CLASSES[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def options(photos: Path, cifar_weights: Path) -> list[object]:
    """Of `genaim evaluate fid`: a reference and an extractor."""
    return ["--reference", photos, "--extractor", "cifar-resnet56", "--weights", cifar_weights]


def record(folder: str = "evaluations") -> dict[str, Any]:
    """The only record under a folder."""
    (path,) = Path(folder).rglob("record.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A tokenizer recipe of a few steps on two classes of coloured squares."""
    for label, color in (("blue", 2), ("red", 0)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(6):
            pixel = [20 * i] * 3
            pixel[color] = 250
            Image.new("RGB", (9, 9), tuple(pixel)).save(tmp_path / "images" / label / f"{i}.png")
    path = tmp_path / "squares-vq.yaml"
    path.write_text(
        f"""# Squares, to see a run from end to end
kind: tokenizer
name: squares-vq
data: {{train: {{path: {tmp_path / "images"}}}, val: {{path: {tmp_path / "images"}}}, image_size: 8}}
tokenizer: {TOKENIZER}
steps: 6
batch_size: 4
trackers: []
dtype: float32
device: cpu
"""
    )
    return path
