"""What a card says of losses and tokenizers."""

import pytest
import torch

from apps.model_card import loss_in_words, reconstruction_facts
from genaim.core.progress import LineProgress
from genaim.data.transforms import LEVELS
from tests.tiny import make_latents, make_model, make_patches, make_tokenizer, make_var


@pytest.mark.parametrize(
    ("kind", "head", "words"),
    [
        ("causal", "diffusion", "mean squared error of the noise plus the variational bound in bits per channel"),
        ("mar", "flow", "mean squared error of the velocity"),
        ("causal", "mixture", "nats per token"),
    ],
)
def test_a_diffusion_loss_is_not_called_nats(kind: str, head: str, words: str) -> None:
    assert loss_in_words(make_model(kind, make_latents(), head), 2.0) == f"2.0000 {words}"
    assert loss_in_words(make_var(), 2.0) == "2.0000 nats per token"
    assert loss_in_words(make_tokenizer(), 2.0) == "2.0000 weighted sum of the recipe's terms"


def test_bits_are_exact_for_causal_models_of_pixels_only() -> None:
    """The loss of a random hidden set given the rest is no code length of the image."""
    exact = " = 0.7213 bits per dimension, exact"  # 2 nats for 4 pixels
    assert loss_in_words(make_model("causal", make_patches(), "logistic"), 2.0).endswith(exact)
    for kind, head in (("mar", "logistic"), ("causal", "gaussian")):
        assert loss_in_words(make_model(kind, make_patches(), head), 2.0) == "2.0000 nats per token"


def test_bicubic_goes_through_the_side_of_the_latent() -> None:
    """Not through that of the image, which loses nothing and compares with nothing."""
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    for tokenizer in (make_latents(), make_latents(patch_size=2), make_tokenizer()):
        row = reconstruction_facts(tokenizer, images, LineProgress())["tokenizer PSNR"]
        assert "bicubic through 4x4 pixels" in row


def test_a_tokenizer_of_one_channel_says_that_colour_is_lost() -> None:
    levels = torch.from_numpy(LEVELS)
    colour = levels[torch.randint(256, (2, 3, 8, 8))]
    grey = colour[:, :1].expand(-1, 3, -1, -1)
    for images, fitting, words in (
        (colour, make_patches(), "colour is lost"),
        (grey, make_patches(), "nothing is lost"),
        (colour, make_patches(grey=False), "nothing is lost"),
    ):
        assert reconstruction_facts(fitting, images, LineProgress())["tokenizer"].endswith(words)
