"""Completing images: given tokens stay, are seen when the model says so, and rows with other holes do not interfere."""

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.models import CausalGenerator, GenerativeModel, Given
from samplers.decode import decode
from tests.tiny import SINGLE_GRID, make_model, make_tokenizer, make_var

MODELS = {
    "var": make_var,
    "mar": lambda: make_model("mar", SINGLE_GRID["latents"](), "flow"),
    "maskgit": lambda: make_model("mar", SINGLE_GRID["codes"](), "categorical"),
    "causal": lambda: make_model("causal", SINGLE_GRID["codes"](), "categorical"),
    "spiral": lambda: make_model("causal", SINGLE_GRID["patches"](), "logistic", order="spiral"),
    "random_path": lambda: make_model("causal", SINGLE_GRID["codes"](), "categorical", order="random_sequence"),
    "plain_raster": lambda: make_model("causal", SINGLE_GRID["codes"](), "categorical", known_first=0.0),
}
EACH = pytest.mark.parametrize("name", MODELS)


def encoded(model: GenerativeModel, count: int) -> Tensor:
    """Tokens of random pictures."""
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return model.tokenizer.encode(images)


def complete(model: GenerativeModel, given: Given, seed: int = 0, first: int = 0, scale: float = 2.0) -> Tensor:
    count = len(given.known)
    labels = torch.arange(first, first + count) % 5
    noise = NoiseSource(seed, torch.arange(first, first + count))
    return decode(model, labels, noise=noise, given=given, guidance_scale=scale)


def holes(model: GenerativeModel) -> Tensor:
    """Known tokens of three images: most, none and all but one (whole scales and corners for VAR)."""
    count = model.tokenizer.num_tokens
    known = torch.zeros(3, count, dtype=torch.bool)
    known[0, [0, 2, 3, *range(7, count)]] = True
    known[2] = True
    known[2, 5] = False
    return known


@EACH
def test_what_is_given_whole_comes_back(name: str) -> None:
    model = MODELS[name]()
    tokens = encoded(model, 2)
    assert complete(model, Given(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))).equal(tokens)


@EACH
def test_nothing_given_is_generation(name: str) -> None:
    model = MODELS[name]()
    tokens = encoded(model, 2)
    nothing = Given(tokens, torch.zeros(tokens.shape[:2], dtype=torch.bool))
    labels, noise = torch.tensor([0, 1]), NoiseSource(0, torch.arange(2))
    assert complete(model, nothing).equal(decode(model, labels, noise=noise, guidance_scale=2.0))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "var"])
def test_given_tokens_stay_and_the_others_are_drawn(name: str) -> None:
    model = MODELS[name]()
    tokens, known = encoded(model, 3), holes(model)
    out = complete(model, Given(tokens, known))
    same = out == tokens if out.dim() == 2 else (out == tokens).all(-1)
    assert same[known].all()
    assert not same[~known].all()


@EACH
def test_rows_with_other_holes_do_not_interfere(name: str) -> None:
    model = MODELS[name]()
    tokens, known = encoded(model, 3), holes(model)
    together = complete(model, Given(tokens, known))
    for row in range(3):
        alone = complete(model, Given(tokens[row : row + 1], known[row : row + 1]), first=row)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["causal", "spiral"])
def test_cached_completion_is_the_known_first_sequence_of_training(name: str) -> None:
    """Features of the steps equal those of one teacher-forced pass over known tokens first, in rows of any length."""
    model = MODELS[name]()
    assert isinstance(model, CausalGenerator)
    tokens, known = encoded(model, 3), holes(model)
    labels = torch.tensor([0, 1, 2])
    path = torch.stack([torch.cat([p[k[p]], p[~k[p]]]) for k in known for p in [model.order.path()]])
    with torch.no_grad():
        whole = model(tokens, path, known.sum(1), labels)
        state = model.start(labels, guided=False, given=Given(tokens, known))
        for step in model.order.steps(known):
            features = model.predict(state, step.positions).features[:, 0]
            truth = step.positions.clamp_min(0)
            for row, position in enumerate(step.positions[:, 0].tolist()):
                if position >= 0:
                    expected = whole[row, (path[row] == position).nonzero().item()]
                    torch.testing.assert_close(features[row], expected, rtol=1e-4, atol=1e-5)
            index = truth if tokens.dim() == 2 else truth[..., None].expand(-1, -1, tokens.shape[-1])
            model.commit(state, step.positions, tokens.gather(1, index))


def test_plain_raster_sees_earlier_tokens_only() -> None:
    model = MODELS["plain_raster"]()
    tokens = encoded(model, 16)
    known = torch.zeros(16, 16, dtype=torch.bool)
    known[:, [0, 1, 12]] = True
    other = tokens.clone()
    other[:, 12] = (tokens[:, 12] + 1) % 32
    first, second = complete(model, Given(tokens, known)), complete(model, Given(other, known))
    assert first[:, :12].equal(second[:, :12])
    assert first[:, 12].equal(tokens[:, 12]) and second[:, 12].equal(other[:, 12])
    seen = MODELS["causal"]()
    first, second = complete(seen, Given(tokens, known)), complete(seen, Given(other, known))
    assert not first[:, :12].equal(second[:, :12]), "a model trained known-first sees them beforehand"


def test_whole_scales_are_kept_as_given() -> None:
    model = make_var()
    tokens = encoded(model, 2)
    known = torch.zeros(2, 21, dtype=torch.bool)
    known[:, :5] = True
    out = complete(model, Given(tokens, known))
    assert out[:, :5].equal(tokens[:, :5])
    assert not out[:, 5:].equal(tokens[:, 5:])


def test_the_known_region_comes_back_whatever_the_coarse_scales_are() -> None:
    """Half of the finest map is given: its latent comes closer to the given one than tokens put back as they are."""
    model = make_var(make_tokenizer(patch_nums=[1, 2, 4, 4, 4], codebook={"size": 512}))
    tokenizer, tokens = model.tokenizer, encoded(model, 8)
    known = torch.zeros(8, tokens.shape[1], dtype=torch.bool)
    fine = sum(tokenizer.scale_sizes[:2])
    for start in (fine, fine + 16, fine + 32):
        known[:, start : start + 8] = True  # the two upper rows of every 4x4 map
    target = tokenizer.tokens_to_latent(tokens)[:, :, :2]
    kept = tokenizer.tokens_to_latent(complete(model, Given(tokens, known), scale=1.0))[:, :, :2]
    drawn = complete(model, Given(tokens, torch.zeros_like(known)), scale=1.0)
    put_back = tokenizer.tokens_to_latent(torch.where(known, tokens, drawn))[:, :, :2]
    assert (kept - target).square().mean() < 0.5 * (put_back - target).square().mean()
