"""TAEF2 with its published weights, where they are at hand, and its files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from genaim.pretrained import load_tokenizer, save_model
from genaim.pretrained.taef2 import load_taef2
from genaim.tokenizers import TAEF2, TAEF2Config


@pytest.fixture
def published(data_root: Path) -> Path:
    if not (data_root / "taef2").is_dir():
        pytest.skip(f"{data_root} has no taef2 folder")
    return data_root / "taef2"


def psnr(image: torch.Tensor, other: torch.Tensor) -> float:
    """In decibels, of images in [-1, 1]."""
    return -10 * ((image - other) / 2).square().mean().log10().item()


@torch.no_grad()
def test_round_trip_of_set5(published: Path, data_root: Path) -> None:
    """31.1 dB, mean over images, as published with the data; sides cropped to multiples of 8."""
    if not (data_root / "sr" / "Set5").is_dir():
        pytest.skip(f"{data_root} has no sr/Set5 folder")
    tokenizer, found = load_taef2(published), []
    for path in sorted((data_root / "sr" / "Set5").glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        pixels = pixels[: pixels.shape[0] // 8 * 8, : pixels.shape[1] // 8 * 8]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        found.append(psnr(image, tokenizer.decode_latent(tokenizer.posterior(image).mean).clamp(-1, 1)))
    assert len(found) == 5
    assert sum(found) / 5 == pytest.approx(31.1, abs=0.05)


@torch.no_grad()
def test_a_model_folder_holds_it(published: Path, tmp_path: Path) -> None:
    config = TAEF2Config(image_size=32, patch_size=2, source=str(published))
    tokenizer = load_tokenizer(config)
    save_model(tmp_path / "model", tokenizer)
    assert str(published) not in (tmp_path / "model" / "config.json").read_text()
    again = load_tokenizer(str(tmp_path / "model"))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert again.decode(again.encode(images)).equal(tokenizer.decode(tokenizer.encode(images)))
    assert (again.num_tokens, again.token_channels) == (4, 128)


def write_files(folder: Path) -> dict[str, torch.Tensor]:
    """Random weights in the published layout, in half precision."""
    torch.manual_seed(0)
    state = {key: value.half() for key, value in TAEF2(TAEF2Config()).state_dict().items()}
    for part in ("encoder", "decoder"):
        keys = [key for key in state if key.startswith(part)]
        save_file({key.removeprefix(f"{part}."): state[key] for key in keys}, folder / f"taef2_{part}.safetensors")
    return state


def test_files_are_read_strictly(tmp_path: Path) -> None:
    state = write_files(tmp_path)
    for key, value in load_taef2(tmp_path).state_dict().items():
        assert value.dtype == torch.float32
        assert value.half().equal(state[key]), key
    file = tmp_path / "taef2_decoder.safetensors"
    weights = load_file(file)
    weights.pop("3.pool.1.bias")
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"does not fit the model: missing decoder\.3\.pool\.1\.bias"):
        load_taef2(tmp_path)
    save_file({**weights, "layers.3.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"key 'layers\.3\.weight' is not of an official TAEF2 checkpoint"):
        load_taef2(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"lacks taef2_decoder\.safetensors; give the folder"):
        load_taef2(tmp_path)


def test_weights_have_to_be_named() -> None:
    with pytest.raises(ValueError, match="tokenizer of kind 'taef2' has no weights; give its source"):
        load_tokenizer(TAEF2Config())
