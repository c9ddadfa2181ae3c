"""The causal generator: one factorisation in training and sampling, exact likelihoods, known-first sequences."""

import pytest
import torch
from torch import Tensor

from genaim.core.masks import free_form
from genaim.core.noise import NoiseSource
from genaim.core.order import known_first
from genaim.models import CausalGenerator
from genaim.models.base import gather, put
from samplers.decode import decode
from tests.tiny import SINGLE_GRID, make_model

PATHS = ["raster", "spiral", "checkerboard", "fixed_random", "random_sequence"]


def make(tokenizer: str = "patches", head: str = "logistic", **changes: object) -> CausalGenerator:
    model = make_model("causal", SINGLE_GRID[tokenizer](), head, **changes)
    assert isinstance(model, CausalGenerator)
    return model.double()


def some_tokens(model: CausalGenerator, rows: int = 3) -> Tensor:
    images = torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return model.tokenizer.from_cache(model.tokenizer.encode_for_cache(images), noise(rows)).double()


def noise(rows: int = 3, seed: int = 0) -> NoiseSource:
    return NoiseSource(seed, torch.arange(rows))


@pytest.mark.parametrize("order", PATHS)
@pytest.mark.parametrize("conditioning", ["none", "adaln", "shared_adaln"])
@torch.no_grad()
def test_cached_steps_equal_teacher_forcing(order: str, conditioning: str) -> None:
    model = make(order=order, conditioning=conditioning)
    labels, seen, positions = torch.tensor([1, 4, 0]), [], []
    predict = model.predict

    def recording(state: object, where: Tensor) -> object:
        positions.append(where)
        seen.append(predict(state, where))
        return seen[-1]

    model.predict = recording
    tokens = decode(model, labels, noise=noise(), guidance_scale=3.0)
    path = torch.cat(positions, dim=1)
    for index, of_labels in enumerate((labels, model.class_embed.null(3))):
        forced = model(tokens, path, torch.zeros(3, dtype=torch.int64), of_labels)
        torch.testing.assert_close(torch.cat([step[index] for step in seen], dim=1), forced, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_token_moves_no_earlier_feature() -> None:
    model = make()
    tokens, labels = some_tokens(model), torch.tensor([0, 1, 2])
    path, none = model.order.sequence(3), torch.zeros(3, dtype=torch.int64)
    before = model(tokens, path, none, labels)
    tokens[:, 7] += 0.5
    after = model(tokens, path, none, labels)
    assert torch.equal(before[:, :8], after[:, :8])  # entry 7 predicts token 7 and has not seen it
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@torch.no_grad()
def test_known_tokens_see_each_other_and_no_unknown_one() -> None:
    model = make()
    tokens, labels = some_tokens(model), torch.tensor([0, 1, 2])
    known = torch.zeros(3, 16, dtype=torch.bool)
    known[:, [3, 8, 9, 15]] = True
    path, count = known_first(model.order.sequence(3), known), known.sum(1)
    before = model(tokens, path, count, labels)
    changed = tokens.clone()
    changed[:, 9] += 0.5  # the third known token, fed as element 3
    after = model(changed, path, count, labels)
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    unknown = tokens.clone()
    unknown[:, 0] += 0.5  # the first unknown one, fed as element 5
    after = model(unknown, path, count, labels)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])
    first = tokens.clone()
    first[:, 8] += 0.5  # fed as element 2: known elements before it see it too
    assert not torch.allclose(before[:, :1], model(first, path, count, labels)[:, :1])


@torch.no_grad()
def test_evaluation_is_the_exact_likelihood_of_the_image() -> None:
    """The chain rule, token by token with a fresh pass each: the loss is -log p of the 8-bit image."""
    model = make()
    tokens, labels = some_tokens(model), torch.tensor([0, 1, 2])
    loss = model.loss(tokens, labels, noise=noise())
    path, total = model.order.sequence(3), torch.zeros(3, dtype=torch.float64)
    for step in range(16):
        seen = tokens.clone()
        seen[:, step:] = 0  # nothing of the future is there to be seen
        features = model(seen, path, torch.zeros(3, dtype=torch.int64), labels)[:, step]
        total += model.head.log_prob(features, tokens[:, step])
    torch.testing.assert_close(loss.sum, -total.sum())
    assert loss.count == 48


def test_training_counts_unknown_tokens_only() -> None:
    tokens = some_tokens(make())
    for share in (0.0, 1.0):
        model = make(known_first=share).train()
        loss = model.loss(tokens, torch.tensor([0, 1, 2]), noise=noise())
        assert loss.count == 48 if share == 0 else 0 < loss.count < 48


def test_training_noise_belongs_to_the_sample() -> None:
    model = make(order="random_sequence").train()
    tokens, labels = some_tokens(model), torch.tensor([0, 1, 2])
    whole = model.loss(tokens, labels, noise=NoiseSource(7, torch.arange(3)))
    rows = [model.loss(tokens[i : i + 1], labels[i : i + 1], noise=NoiseSource(7, torch.tensor([i]))) for i in range(3)]
    torch.testing.assert_close(whole.sum, sum(r.sum for r in rows))
    assert whole.count == sum(r.count for r in rows)


def test_free_form_sets_have_any_size_and_hang_together() -> None:
    known = free_form((8, 8), noise(400))
    counts = known.sum(1)
    assert counts.min() < 6 and counts.max() > 57 and counts.max() < 64
    maps = known.view(-1, 8, 8)
    same = (maps[:, 1:] == maps[:, :-1]).float().mean() + (maps[:, :, 1:] == maps[:, :, :-1]).float().mean()
    assert same / 2 > 0.8  # neighbours agree; in a random scatter two in three of them would


def test_put_and_gather_skip_missing_positions() -> None:
    values, positions = torch.arange(8.0).view(2, 4), torch.tensor([[3, -1], [0, 2]])
    out = put(values, positions, torch.full((2, 2), 9.0))
    assert out.tolist() == [[0, 1, 2, 9], [9, 5, 9, 7]] and values[0, 3] == 3
    assert gather(values, positions)[1].tolist() == [4, 6]
    deep = put(values[..., None].expand(-1, -1, 2), positions, torch.full((2, 2, 2), 9.0))
    assert deep[..., 0].equal(out) and deep[..., 1].equal(out)
