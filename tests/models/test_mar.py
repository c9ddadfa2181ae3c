"""MAR: hidden shares, padding that changes nothing, rows that are independent, presets that are the published ones."""

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.heads import DiffusionHeadConfig
from genaim.models import MAR, MARConfig
from genaim.models.mar import hidden_count, known_positions
from samplers import generate
from tests.tiny import make_latents, make_model


def make(**changes: object) -> MAR:
    model = make_model("mar", make_latents(), "diffusion", **changes)
    assert isinstance(model, MAR)
    return model.double()


def some_tokens(rows: int = 3) -> Tensor:
    return torch.randn(rows, 16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def test_rows_with_fewer_known_tokens_are_padded_without_effect() -> None:
    model, tokens = make(), some_tokens()
    known = torch.zeros(3, 16, dtype=torch.bool)
    known[0, [1, 5, 6, 7]] = True
    known[1, 3] = True
    condition = model.class_embed(torch.tensor([0, 1, 2]))
    together = model.decode_all(model.encode_known(tokens, known, condition), known)
    for row in range(3):
        one = slice(row, row + 1)
        alone = model.decode_all(model.encode_known(tokens[one], known[one], condition[one]), known[one])
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-10)
    assert known_positions(known, 4).tolist() == [[1, 5, 6, 7], [3, -1, -1, -1], [-1, -1, -1, -1]]


@torch.no_grad()
def test_hidden_tokens_are_not_seen() -> None:
    model, tokens = make(), some_tokens()
    known = torch.arange(16).expand(3, -1) < 5
    condition = model.class_embed(torch.tensor([0, 1, 2]))
    before = model.decode_all(model.encode_known(tokens, known, condition), known)
    tokens[:, 5:] = 9
    assert torch.equal(before, model.decode_all(model.encode_known(tokens, known, condition), known))


def test_training_hides_a_truncated_normal_share() -> None:
    counts = hidden_count(NoiseSource(0, torch.arange(20000)), 256).double() / 256
    assert counts.min() >= 0.7 and counts.max() == 1
    reference = torch.distributions.Normal(1.0, 0.25)
    below, middle = reference.cdf(torch.tensor([0.7, 0.85])).tolist()
    assert (counts < 0.85).double().mean().item() == pytest.approx((middle - below) / (0.5 - below), abs=0.02)


def test_training_noise_belongs_to_the_sample() -> None:
    model, tokens, labels = make().train(), some_tokens(), torch.tensor([0, 1, 2])
    whole = model.loss(tokens, labels, noise=NoiseSource(7, torch.arange(3)))
    rows = [model.loss(tokens[i : i + 1], labels[i : i + 1], noise=NoiseSource(7, torch.tensor([i]))) for i in range(3)]
    torch.testing.assert_close(whole.sum, sum(r.sum for r in rows))
    assert whole.count == sum(r.count for r in rows)


@pytest.mark.parametrize("num_steps", [1, 3, 16, 40])
def test_any_number_of_steps(num_steps: int) -> None:
    images = generate(make().float(), torch.tensor([0, 1]), num_steps=num_steps)
    assert images.isfinite().all()


def test_no_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="0 steps are asked for; ask for 1 or more"):
        generate(make().float(), torch.tensor([0, 1]), num_steps=0)


@pytest.mark.parametrize(
    ("preset", "depth", "width", "heads", "head_depth", "head_width"),
    [("base", 12, 768, 12, 6, 1024), ("large", 16, 1024, 16, 8, 1280), ("huge", 20, 1280, 16, 12, 1536)],
)
def test_presets_are_the_published_sizes(
    preset: str, depth: int, width: int, heads: int, head_depth: int, head_width: int
) -> None:
    config = MARConfig(preset=preset)
    assert (config.encoder_depth, config.decoder_depth, config.width, config.num_heads) == (depth, depth, width, heads)
    assert isinstance(config.head, DiffusionHeadConfig)
    assert (config.head.depth, config.head.hidden, config.num_buffer, config.head.draws) == (
        head_depth,
        head_width,
        64,
        4,
    )
    assert (config.num_steps, config.head.diffusion_steps) == (64, 100)
