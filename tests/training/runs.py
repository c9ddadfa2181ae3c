"""Tiny real runs for the training tests: 16x16 pictures, models of a few thousand weights."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genaim.core.progress import LineProgress
from genaim.pretrained import load_tokenizer, save_model
from genaim.tokenizers import MultiScaleVQ, MultiScaleVQConfig
from genaim.training.config import parse_run
from genaim.training.run import train
from genaim.training.tasks import SampleFn
from tests.tiny import TOKENIZER as TINY
from tests.tiny import merge

# 16x16 pictures, and so few codes that the moving averages are exercised
TOKENIZER = merge(TINY, {"autoencoder": {"channel_multipliers": [1, 1, 2]}, "codebook": {"size": 16}})

ENCODER = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "head_depth": 1, "head_width": 8}


def make_images(folder: Path, count: int = 24) -> None:
    """Two classes of noisy pictures: bright above, bright below."""
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        half = slice(0, 8) if i % 2 else slice(8, 16)
        pixels[half, :, i % 3] += 150
        path = folder / ("above" if i % 2 else "below") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def recipe(root: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """A run of 6 steps over the images in ``root``, float32 on CPU."""
    run: dict[str, Any] = {
        "kind": kind,
        "name": kind,
        "folder": str(root / "runs"),
        "data": {"train": {"path": str(root / "images")}, "val": {"path": str(root / "images")}, "image_size": 16},
        "steps": 6,
        "batch_size": 8,
        "optimizer": {"lr": 2e-3, "warmup_steps": 2},
        "log_every": 1,
        "validate_every": 3,
        "save_every": 2,
        "dtype": "float32",
        "device": "cpu",
        "trackers": [],
    }
    if kind == "tokenizer":
        run["tokenizer"] = TOKENIZER
    elif kind == "encoder":
        run["model"] = {**ENCODER, "image_size": 16}
        run["data"] |= {"crop": "resized", "flip": True}  # as AIM is pre-trained
    else:
        run |= {
            "tokenizer": str(root / "tokenizer"),
            "cache_folder": str(root / "cache"),
            "model": {"kind": "var", "depth": 2, "width": 16, "num_heads": 2, "drop_path": 0.2},
        }
    return merge(run, changes)


def make_tokenizer(root: Path) -> None:
    torch.manual_seed(0)
    save_model(root / "tokenizer", MultiScaleVQ(MultiScaleVQConfig.model_validate(TOKENIZER)))


class StopAt(LineProgress):
    """Ends the run after a step, without saving, as a crash would."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step
        self.lines: list[str] = []

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        if done == self.step and "loss" in figures:
            raise RuntimeError("crash")

    def say(self, text: str) -> None:
        self.lines.append(text)


def start(config: dict[str, Any], stop_at: int | None = None, sample_fn: SampleFn | None = None) -> tuple[Path, StopAt]:
    progress = StopAt(stop_at)
    run = parse_run(config, "test")
    tokenizer = load_tokenizer(run.tokenizer) if run.kind == "generator" else None
    return train(run, progress, tokenizer=tokenizer, store_tokenizer=save_model, sample_fn=sample_fn), progress


if __name__ == "__main__":  # for runs that are killed, and for runs of several processes
    import json

    start(json.loads(Path(sys.argv[1]).read_text()))
