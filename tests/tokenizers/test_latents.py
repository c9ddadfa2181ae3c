"""What all continuous tokenizers share: scale, caches of posteriors, MAR's moments."""

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.tokenizers import TAEF2, KLAutoencoder, LatentTokenizer, TAEF2Config
from genaim.tokenizers.latents import Posterior, kl_divergence
from tests.tiny import make_latents


def make_taef2() -> TAEF2:
    torch.manual_seed(0)
    return TAEF2(TAEF2Config(image_size=16, latent_scale=0.5)).eval()


def noise() -> NoiseSource:
    return NoiseSource(3, torch.arange(3))


@pytest.fixture(params=[make_latents, make_taef2], ids=["kl", "taef2"])
def tokenizer(request: pytest.FixtureRequest) -> LatentTokenizer:
    return request.param()


@pytest.fixture
def images(tokenizer: LatentTokenizer) -> Tensor:
    return torch.rand(3, 3, tokenizer.image_size, tokenizer.image_size) * 2 - 1


@torch.no_grad()
def test_a_cache_keeps_the_posterior(tokenizer: LatentTokenizer, images: Tensor) -> None:
    stored, mode = tokenizer.encode_for_cache(images), tokenizer.encode(images)
    drawn = tokenizer.from_cache(stored, noise())
    assert drawn.shape == mode.shape == (3, tokenizer.num_tokens, tokenizer.token_channels)
    if tokenizer.deterministic:
        assert stored.equal(mode) and drawn.equal(mode)
        return
    mean, std = stored.chunk(2, dim=-1)
    assert mean.equal(mode)
    assert std.min() > 0
    torch.testing.assert_close(drawn, mean + std * noise().normal(*mean.shape[1:]))


@torch.no_grad()
def test_moments_are_as_good_as_a_cache(tokenizer: LatentTokenizer, images: Tensor) -> None:
    moments = tokenizer.moments(images)
    channels, height, width = tokenizer.latent_shape
    assert moments.shape == (3, 2 * channels, height, width)
    assert moments.isfinite().all()
    expected = tokenizer.from_cache(tokenizer.encode_for_cache(images), noise())
    torch.testing.assert_close(tokenizer.from_cache(moments, noise()), expected)


def test_moments_of_another_autoencoder_are_refused(tokenizer: LatentTokenizer) -> None:
    with pytest.raises(ValueError, match=r"moments \(8, 4, 4\) are not those of this tokenizer, which has \("):
        tokenizer.from_cache(torch.zeros(3, 8, 4, 4), noise())


@torch.no_grad()
def test_the_measured_scale_gives_tokens_of_unit_size() -> None:
    tokenizer = make_latents(latent_scale=None)
    images = torch.rand(64, 3, 8, 8) * 2 - 1
    assert tokenizer.latent_scale == 0
    before = tokenizer.encode(images)
    tokenizer.measure_scale(tokenizer.posterior(part) for part in images.split([40, 24]))
    torch.testing.assert_close(tokenizer.encode(images), before * tokenizer.latent_scale)
    drawn = tokenizer.encode(images, noise=NoiseSource(0, torch.arange(64)))
    assert drawn.square().mean().item() == pytest.approx(1, rel=0.1)
    whole = make_latents(latent_scale=None)
    whole.measure_scale([whole.posterior(images)])
    torch.testing.assert_close(tokenizer.latent_scale, whole.latent_scale)


@torch.no_grad()
def test_bfloat16_weights_take_float32_images() -> None:
    tokenizer, images = make_latents(), torch.rand(2, 3, 8, 8) * 2 - 1
    exact = tokenizer.encode(images)
    tokens = tokenizer.bfloat16().encode(images)
    assert tokens.dtype == tokenizer.encode_for_cache(images).dtype == tokenizer.decode(tokens).dtype == torch.float32
    torch.testing.assert_close(tokens, exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_a_scale_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"KLAutoencoder gives latents of mean square 0\.0; check its weights"):
        make_latents(latent_scale=None).measure_scale([Posterior(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))])
    with pytest.raises(ValueError, match="no images to measure the latent scale on"):
        make_latents(latent_scale=None).measure_scale([])


@torch.no_grad()
def test_tokens_of_several_cells_decode_as_those_of_one(images: Tensor, tokenizer: LatentTokenizer) -> None:
    large = type(tokenizer)(tokenizer.config.model_copy(update={"patch_size": 2})).eval()
    large.load_state_dict(tokenizer.state_dict())
    tokens = large.encode(images)
    assert tokens.shape == (3, tokenizer.num_tokens // 4, 4 * tokenizer.token_channels)
    torch.testing.assert_close(large.decode(tokens), tokenizer.decode(tokenizer.encode(images)))


def test_kl_divergence_has_its_closed_form() -> None:
    mean, std = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, std), expected)


def test_an_image_that_is_no_whole_number_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size 12 must be a multiple of downsampling 8 x patch_size 1"):
        TAEF2(TAEF2Config(image_size=12))


def test_a_masked_token_has_a_masked_pixel() -> None:
    tokenizer: KLAutoencoder = make_latents()
    keep = torch.ones(1, 8, 8, dtype=torch.bool)
    keep[0, 3, 5] = False
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[1, 2] = False
    assert tokenizer.token_mask(keep).view(4, 4).equal(expected)
