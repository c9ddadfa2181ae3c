"""Pixel patches: tokens that are 8-bit levels, and a round trip that loses nothing but colour."""

import pytest
import torch

from genaim.core.noise import NoiseSource
from genaim.data.transforms import LEVELS
from tests.tiny import make_patches


def pictures(channels: int) -> torch.Tensor:
    """Random 8-bit pictures, (4, 3, 8, 8)."""
    levels = torch.randint(256, (4, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(LEVELS)[levels].expand(-1, 3, -1, -1)


@pytest.mark.parametrize(("grey", "channels"), [(True, 1), (False, 3)])
def test_the_round_trip_is_exact(grey: bool, channels: int) -> None:
    tokenizer, images = make_patches(grey=grey), pictures(channels)
    assert tokenizer.decode(tokenizer.encode(images)).equal(images)


def test_the_grey_of_colours_is_one_of_256_levels() -> None:
    """Thirds of a level have no probability under a head of levels: bits per dimension would not be exact."""
    tokenizer, images = make_patches(), pictures(3)
    tokens = tokenizer.encode(images)
    assert torch.isin(tokens, torch.from_numpy(LEVELS)).all()
    assert (tokenizer.decode(tokens) - images.mean(1, keepdim=True)).abs().max() <= 0.5 / 127.5 + 1e-6
    cached = tokenizer.from_cache(tokenizer.encode_for_cache(images), NoiseSource(0, torch.arange(4)))
    assert cached.equal(tokens)


def test_decoded_pictures_have_memory_of_their_own() -> None:
    tokenizer = make_patches(grey=True)
    images = tokenizer.decode(torch.zeros(1, tokenizer.num_tokens, tokenizer.token_channels))
    images[:, 0] += 1
    assert images.mean((0, 2, 3)).tolist() == [1, 0, 0]
