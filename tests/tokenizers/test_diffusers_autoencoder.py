"""Autoencoders of diffusers: equal to what they are there, rebuilt from a model folder, refused by name."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from genaim.pretrained import load_tokenizer, save_model
from genaim.tokenizers import DiffusersAutoencoder, DiffusersAutoencoderConfig

KL: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 3,
}
TINY: dict[str, Any] = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 1, 1],
    "num_decoder_blocks": [1, 1, 1],
}
DC: dict[str, Any] = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_out_channels": [8, 16],
    "decoder_block_out_channels": [8, 16],
    "encoder_layers_per_block": [1, 1],
    "decoder_layers_per_block": [1, 1],
    "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
    "encoder_qkv_multiscales": [[], [5]],
    "decoder_qkv_multiscales": [[], [5]],
    "scaling_factor": 0.4,
}
SETTINGS = {"AutoencoderKL": KL, "AutoencoderTiny": TINY, "AutoencoderDC": DC}
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make_source(folder: Path, name: str, **settings: Any) -> Path:
    """A folder in the layout of diffusers, with random weights."""
    network = getattr(diffusers, name).from_config({**SETTINGS[name], **settings})
    network.save_pretrained(folder)
    return folder


def load(folder: Path, **changes: Any) -> DiffusersAutoencoder:
    config = {"source": str(folder), "image_size": 16, **changes}
    tokenizer = load_tokenizer(DiffusersAutoencoderConfig.model_validate(config))
    assert isinstance(tokenizer, DiffusersAutoencoder)
    return tokenizer


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_a_model_folder_rebuilds_it_without_its_source(name: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", name)
    tokenizer = load(source, patch_size=2)
    tokens = tokenizer.encode(IMAGES)
    assert tokens.shape == (2, tokenizer.num_tokens, tokenizer.token_channels)
    assert tokenizer.decode(tokens).shape == IMAGES.shape
    save_model(tmp_path / "model", tokenizer)
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    source.rename(tmp_path / "elsewhere")
    again = load_tokenizer(str(tmp_path / "model"))
    assert again.encode(IMAGES).equal(tokens)
    assert again.decode(tokens).equal(tokenizer.decode(tokens))


@torch.no_grad()
def test_kl_is_scaled_and_centred_as_in_diffusers(tmp_path: Path) -> None:
    source = make_source(tmp_path, "AutoencoderKL", scaling_factor=0.3, shift_factor=0.2)
    network = diffusers.AutoencoderKL.from_pretrained(source)
    tokenizer = load(source)
    posterior = network.encode(IMAGES).latent_dist
    torch.testing.assert_close(tokenizer.tokens_to_latent(tokenizer.encode(IMAGES)), (posterior.mean - 0.2) * 0.3)
    mean, std = tokenizer.encode_for_cache(IMAGES).chunk(2, dim=-1)
    torch.testing.assert_close(tokenizer.tokens_to_latent(std), posterior.std * 0.3)
    decoded = network.decode(tokenizer.tokens_to_latent(mean) / 0.3 + 0.2).sample.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(mean), decoded)


@torch.no_grad()
def test_channels_are_centred_and_spread_as_published(tmp_path: Path) -> None:
    centre, spread = [0.1, -0.5, 2.0], [1.0, 0.5, 3.0]
    plain = load(make_source(tmp_path, "AutoencoderKL", scaling_factor=0.5))
    settings = {**plain.config.settings, "latents_mean": centre, "latents_std": spread}
    tokenizer = DiffusersAutoencoder(plain.config.model_copy(update={"settings": settings})).eval()
    tokenizer.load_state_dict(plain.state_dict())
    expected = (plain.encode(IMAGES) / 0.5 - torch.tensor(centre)) / torch.tensor(spread) * 0.5
    torch.testing.assert_close(tokenizer.encode(IMAGES), expected)
    torch.testing.assert_close(tokenizer.decode(expected), plain.decode(plain.encode(IMAGES)))


@torch.no_grad()
def test_tiny_sees_images_from_0_to_1_and_has_no_noise(tmp_path: Path) -> None:
    tokenizer = load(make_source(tmp_path, "AutoencoderTiny"))
    inner = tokenizer.network.encoder.layers((IMAGES + 1) / 2)
    torch.testing.assert_close(tokenizer.tokens_to_latent(tokenizer.encode(IMAGES)), inner)
    assert tokenizer.deterministic
    assert tokenizer.encode_for_cache(IMAGES).equal(tokenizer.encode(IMAGES))


def test_a_scale_of_the_config_comes_before_the_published_one(tmp_path: Path) -> None:
    source = make_source(tmp_path, "AutoencoderDC")
    assert load(source).latent_scale.item() == pytest.approx(0.4)
    assert load(source, latent_scale=0.7).latent_scale.item() == pytest.approx(0.7)


def test_an_autoencoder_inside_a_pipeline(tmp_path: Path) -> None:
    make_source(tmp_path / "vae", "AutoencoderTiny")
    assert load(tmp_path, subfolder="vae").config.class_name == "AutoencoderTiny"
    with pytest.raises(ValueError, match=r"holds no config\.json of diffusers; give the autoencoder's own folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_name": "AutoencoderK"}, "diffusers has no autoencoder 'AutoencoderK'; did you mean 'AutoencoderKL'"),
        ({"class_name": "UNet2DModel"}, "diffusers has no autoencoder 'UNet2DModel'"),
        ({"class_name": "AutoencoderKL", "settings": {**KL, "norm_num_groups": 7}}, "cannot code images of 16 pixels"),
        ({"class_name": "AutoencoderTiny", "settings": TINY, "image_size": 6}, r"\(3, 6, 6\) become \(3, 8, 8\)"),
        ({"class_name": "AutoencoderTiny", "settings": TINY, "patch_size": 3}, "image_size 16 must be a multiple"),
        ({}, "needs a source"),
        ({"class_name": "AutoencoderTiny", "source": "a/b"}, "needs a source"),
        ({"source": "a/b"}, r"autoencoder 'a/b' is not read yet; use genaim\.pretrained\.load_tokenizer"),
    ],
)
def test_what_cannot_be_built_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersAutoencoder(DiffusersAutoencoderConfig.model_validate({"image_size": 16, **config}))


def test_a_source_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder; give one, or a Hub name"):
        load(tmp_path / "nowhere")
    source = make_source(tmp_path, "AutoencoderTiny")
    file = source / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.layers.0.bias")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit AutoencoderTiny: missing encoder\.layers\.0\.bias"):
        load(source)
    torch.save(weights, source / "diffusion_pytorch_model.bin")
    file.unlink()
    with pytest.raises(ValueError, match=r"AutoencoderTiny in .* cannot be read") as error:
        load(source)  # pickled weights are not opened
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"is of an autoencoder of diffusers; a recipe takes it as tokenizer\.kind"):
        load_tokenizer(str(source))


def test_without_network_one_line_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "from genaim.pretrained import load_tokenizer\n"
        "from genaim.tokenizers import DiffusersAutoencoderConfig\n"
        "try: load_tokenizer(DiffusersAutoencoderConfig(source='nobody/nothing'))\n"
        "except ValueError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("autoencoder 'nobody/nothing' cannot be had from the Hub (")
    assert line.endswith("and give their folder as source.")


def test_diffusers_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, genaim.tokenizers, genaim.pretrained; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
