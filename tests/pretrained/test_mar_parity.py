"""MAR's tokenizer against stored outputs of the official implementation."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from genaim.pretrained.mar import KL16_SCALE, load_official_kl16
from genaim.tokenizers import KLAutoencoder, KLAutoencoderConfig
from genaim.tokenizers.latents import kl_divergence, split_moments
from tests.parity_sets import FOLDER, ParitySet


class Draw:
    """Noise that is one stored draw."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def normal(self, *shape: int) -> Tensor:
        assert self.values.shape[1:] == shape
        return self.values

    uniform = normal


def make_tokenizer(config: dict[str, Any], image_size: int) -> KLAutoencoder:
    return KLAutoencoder(
        KLAutoencoderConfig.model_validate(
            {
                "image_size": image_size,
                "autoencoder": {
                    "channels": config["ch"],
                    "channel_multipliers": config["ch_mult"],
                    "num_res_blocks": config["num_res_blocks"],
                    "latent_channels": config["embed_dim"],
                    "decoder_attention": False,
                },
            }
        )
    )


def load_tokenizer(data: ParitySet, state: dict[str, Tensor]) -> KLAutoencoder:
    config = data.meta["official_config"] | data.config
    tokenizer = make_tokenizer(config, data["in_image"].shape[-1]).to(data.dtype)
    load_official_kl16(tokenizer, state)
    return tokenizer.eval()


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def check_round_trip(data: ParitySet, tokenizer: KLAutoencoder) -> None:
    """What both sets hold: moments, a sample, and the image of given tokens."""
    image = data["in_image"]
    data.check("out_encoder", tokenizer.encoder(image))
    data.check("out_moments", tokenizer.moments(image))
    tokens = tokenizer.tokens_to_latent(tokenizer.encode(image, noise=Draw(data["in_posterior_noise"])))
    data.check("out_scaled_sample", tokens)
    data.check("out_sample", tokens / tokenizer.scale())
    data.check("out_decoded_tokens", tokenizer.decode_latent(data["in_tokens"] / tokenizer.scale()))


@torch.no_grad()
def test_tokenizer(dtype: torch.dtype) -> None:
    data = ParitySet("marvae_a", dtype)
    tokenizer = load_tokenizer(data, data.state())
    assert tokenizer.latent_scale.item() == pytest.approx(data.config["latent_scale"])
    check_round_trip(data, tokenizer)
    mean, std = tokenizer.posterior(data["in_image"])
    data.check("out_mean", mean)
    data.check("out_std", std)
    data.check("out_logvar", 2 * std.log())
    data.check("out_kl", kl_divergence(mean, std))
    data.check("out_decoded_mean", tokenizer.decode_latent(mean))
    data.check("out_moments2_logvar", 2 * split_moments(data["in_moments2"]).std.log())
    data.check("out_flat_encoder", tokenizer.encoder(data["in_image_flat"]))


@torch.no_grad()
def test_published_channel_layout(dtype: torch.dtype) -> None:
    data = ParitySet("marvae_layout", dtype)
    shapes = json.loads((FOLDER / "keys" / "mar-kl16.json").read_text())
    check_round_trip(data, load_tokenizer(data, data.formula_state(shapes)))


def test_published_tokenizer_loads_strictly() -> None:
    """The config's defaults are the published KL-16: every key has a place, and every weight a key."""
    shapes = json.loads((FOLDER / "keys" / "mar-kl16.json").read_text())
    with torch.device("meta"):
        tokenizer = KLAutoencoder(KLAutoencoderConfig())
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_official_kl16(tokenizer, state)
    assert (tokenizer.grid, tokenizer.token_channels, KL16_SCALE) == ((16, 16), 16, 0.2325)
    lacking = {key: value for key, value in state.items() if key != "encoder.mid.attn_1.k.bias"}
    with pytest.raises(ValueError, match=r"middle\.1\.qkv\.bias is \(1024,\) instead of \(1536,\)"):
        load_official_kl16(tokenizer, lacking)
    with pytest.raises(ValueError, match="not of an official MAR tokenizer"):
        load_official_kl16(tokenizer, state | {"quantize.embedding.weight": torch.zeros(1)})
