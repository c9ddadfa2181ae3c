"""Every order x head x tokenizer that makes sense trains a step and samples; every other one says why not."""

from itertools import product

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.heads import HEADS as HEAD_REGISTRY
from genaim.models import MODELS, VAR, GenerativeModel, Given, VARConfig
from samplers import generate
from samplers.decode import decode
from samplers.inpaint import complete
from tests.tiny import HEADS, SINGLE_GRID, make_latents, make_model, make_tokenizer, make_var

ORDERS = {
    "raster": ("causal", {"order": "raster"}),
    "spiral": ("causal", {"order": "spiral"}),
    "checkerboard": ("causal", {"order": "checkerboard"}),
    "fixed_random": ("causal", {"order": "fixed_random"}),
    "random_sequence": ("causal", {"order": "random_sequence"}),
    "random": ("mar", {}),
}
FITTING = {
    "codes": {"categorical"},
    "latents": {"gaussian_unit", "gaussian", "mixture", "diffusion", "flow"},
    "patches": {"gaussian_unit", "gaussian", "mixture", "logistic", "coupled", "diffusion", "flow"},
}
UNGUIDED = {"gaussian"}  # no Gaussian remains one under guidance when its variance is learned
CASES = [(o, h, t) for o, h, t in product(ORDERS, HEADS, SINGLE_GRID) if h in FITTING[t]]
MISFITS = [(k, h, t) for k, h, t in product(("causal", "mar"), HEADS, SINGLE_GRID) if h not in FITTING[t]]


def build(order: str, head: str, tokenizer: str) -> GenerativeModel:
    kind, changes = ORDERS[order]
    return make_model(kind, SINGLE_GRID[tokenizer](), head, **changes)


def test_the_matrix_covers_the_registries() -> None:
    assert {HEADS[name]["kind"] for name in HEADS} == HEAD_REGISTRY.keys()
    assert {kind for kind, _ in ORDERS.values()} | {"var"} == MODELS.keys()


@pytest.mark.parametrize(("order", "head", "tokenizer"), [case for case in CASES if case[0] in ("raster", "random")])
def test_bfloat16_weights_draw_and_have_a_loss(order: str, head: str, tokenizer: str) -> None:
    """A float32 canvas met bfloat16 weights in models of continuous tokens."""
    model = build(order, head, tokenizer).bfloat16()
    labels, noise = torch.tensor([0, 4]), NoiseSource(1, torch.arange(2))
    tokens = decode(model, labels, noise=noise, guidance_scale=1.0 if head in UNGUIDED else 2.0)
    images = model.tokenizer.decode(tokens)
    assert images.dtype == torch.float32 and images.isfinite().all() and images.std() > 0
    loss = model.loss(tokens, labels, noise=noise)
    assert loss.sum.dtype == torch.float32 and loss.sum.isfinite()
    keep = torch.ones(2, 8, 8, dtype=torch.bool)
    keep[:, :4] = False
    scale = 1.0 if head in UNGUIDED else 2.0
    assert complete(model, images, keep, labels, guidance_scale=scale)[:, :, :4].isfinite().all()


def test_bfloat16_weights_of_scales_complete() -> None:
    model = make_var().bfloat16()
    keep = torch.ones(2, 8, 8, dtype=torch.bool)
    keep[:, :4] = False
    assert complete(model, torch.rand(2, 3, 8, 8), keep, torch.tensor([0, 4])).isfinite().all()


@pytest.mark.parametrize(("order", "head", "tokenizer"), CASES)
def test_trains_a_step(order: str, head: str, tokenizer: str) -> None:
    model = build(order, head, tokenizer).train()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.tensor([0, 1, 2, -1])

    def loss() -> Tensor:
        noise = NoiseSource(0, torch.arange(4))
        tokens = model.tokenizer.from_cache(model.tokenizer.encode_for_cache(images), noise)
        found = model.loss(tokens, labels, noise=noise)
        return found.sum / found.count

    before = loss()
    parameters = [p for n, p in model.named_parameters() if not n.startswith("tokenizer.")]
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    unused = [n for (n, _), g in zip(named(model), gradients, strict=True) if g is None]
    assert not unused
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 1e-3 * gradient / max(1.0, float(gradient.norm()))
    assert loss() < before


def named(model: GenerativeModel) -> list[tuple[str, Tensor]]:
    return [(n, p) for n, p in model.named_parameters() if not n.startswith("tokenizer.")]


@pytest.mark.parametrize(("order", "head", "tokenizer"), CASES)
def test_rows_do_not_depend_on_the_batch(order: str, head: str, tokenizer: str) -> None:
    model = build(order, head, tokenizer)
    labels = torch.tensor([0, 1, 2, 3, 5])  # the last is the null class
    scale = 1.0 if head in UNGUIDED else 2.0
    whole = generate(model, labels, seed=3, guidance_scale=scale)
    single = generate(model, labels, seed=3, guidance_scale=scale, batch_size=1)
    assert whole.shape == (5, 3, 8, 8) and whole.isfinite().all()
    error = ((whole - single) / 2).square().flatten(1).mean(1)
    assert (-10 * torch.log10(error.clamp_min(1e-12)) >= 40).all()
    assert not torch.allclose(whole[0], whole[1])
    assert not torch.allclose(whole, generate(model, labels, seed=4, guidance_scale=scale))


@pytest.mark.parametrize(("order", "head", "tokenizer"), [case for case in CASES if case[0] in ("raster", "random")])
def test_completed_rows_do_not_depend_on_what_others_are_given(order: str, head: str, tokenizer: str) -> None:
    """A mixture under guidance made fewer draws where all tokens of a step were given, so that later ones differed."""
    kind, changes = ORDERS[order]
    unseen = {"known_first": 0.0} if kind == "causal" else {}  # given tokens come in their turn
    model = make_model(kind, SINGLE_GRID[tokenizer](), head, **changes, **unseen)
    tokens = model.tokenizer.encode(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    known = torch.zeros(2, model.order.num_tokens, dtype=torch.bool)
    known[0, :2] = True

    def completed(rows: list[int]) -> Tensor:
        given, labels = Given(tokens[rows], known[rows]), torch.tensor([0, 1])[rows]
        noise, scale = NoiseSource(0, torch.tensor(rows)), 1.0 if head in UNGUIDED else 2.0
        return decode(model, labels, noise=noise, given=given, guidance_scale=scale).double()

    assert torch.allclose(completed([0, 1])[:1], completed([0]), atol=1e-3)


@pytest.mark.parametrize(("kind", "head", "tokenizer"), MISFITS)
def test_a_head_that_does_not_fit_the_tokens_says_which_does(kind: str, head: str, tokenizer: str) -> None:
    with pytest.raises(ValueError, match=r"head 'categorical' predicts codes|predicts continuous tokens|8-bit pixels"):
        make_model(kind, SINGLE_GRID[tokenizer](), head)


@pytest.mark.parametrize("kind", ["causal", "mar"])
def test_a_grid_is_needed(kind: str) -> None:
    with pytest.raises(ValueError, match="3 scales, which only the order 'scales' serves; use model kind var"):
        make_model(kind, make_tokenizer(), "categorical")


def test_scales_need_a_multi_scale_tokenizer() -> None:
    with pytest.raises(ValueError, match="the model 'var' needs a tokenizer of kind 'multiscale_vq', not 'kl'"):
        VAR(VARConfig(depth=2, width=32, num_heads=4), make_latents())


def test_scales_honour_the_batch_row_rule() -> None:
    model, labels = make_var(), torch.tensor([0, 1, 2, 3, 4])
    whole = generate(model, labels, seed=3, guidance_scale=2.0)
    assert torch.allclose(whole, generate(model, labels, seed=3, guidance_scale=2.0, batch_size=1), atol=1e-4)


def test_learned_variance_refuses_guidance() -> None:
    model = build("raster", "gaussian", "latents")
    with pytest.raises(ValueError, match="guidance needs a Gaussian of unit variance"):
        generate(model, torch.tensor([0]), guidance_scale=2.0)
