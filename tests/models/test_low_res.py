"""Models that are given a low-resolution image: in training and in sampling, beside given tokens, with guidance."""

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.models import MAR, VAR, CausalGenerator, GenerativeModel, Given
from genaim.models.base import Predicted
from samplers import generate
from samplers.decode import decode
from samplers.super_resolve import enlarge
from tests.tiny import SINGLE_GRID, make_model, make_var

LOW = {"low_res": 4, "low_res_patch": 2}
MODELS = {
    "var": lambda **changes: make_var(**{**LOW, **changes}),
    "var_coarse": lambda **changes: make_var(
        **{**LOW, "coarse_share": 0.5, "coarse_scales": 2, "drop_path": 0.0, **changes}
    ),
    "mar": lambda **changes: make_model("mar", SINGLE_GRID["latents"](), "flow", **{**LOW, **changes}),
    "causal": lambda **changes: make_model("causal", SINGLE_GRID["codes"](), "categorical", **{**LOW, **changes}),
    "uncond": lambda **changes: make_model(
        "causal", SINGLE_GRID["patches"](), "logistic", num_classes=0, conditioning="none", **{**LOW, **changes}
    ),
}
EACH = pytest.mark.parametrize("name", MODELS)


def pictures(count: int, side: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def labels_of(model: GenerativeModel, count: int) -> Tensor:
    return torch.arange(count) % max(model.config.num_classes, 1)


def tokens_of(model: GenerativeModel, count: int) -> Tensor:
    with torch.no_grad():
        return model.tokenizer.encode(pictures(count, 8).to(model.device))


def forced(model: GenerativeModel, tokens: Tensor, labels: Tensor, prefix: Tensor, step: Tensor) -> Tensor:
    """Features of a step's positions from one pass over the given tokens, without a cache."""
    if isinstance(model, VAR):
        features = model(model.tokenizer.scale_inputs(tokens), labels, prefix=prefix)
    elif isinstance(model, CausalGenerator):
        path = model.order.sequence(len(tokens))
        features = model(tokens, path, torch.zeros(len(tokens), dtype=torch.int64), labels, prefix=prefix)
    else:
        assert isinstance(model, MAR)
        raise AssertionError("MAR has no cache")
    return features.gather(1, step[..., None].expand(-1, -1, features.shape[-1]))


@pytest.mark.parametrize("name", ["var", "causal", "uncond"])
@torch.no_grad()
def test_cached_steps_equal_teacher_forcing(name: str) -> None:
    model = MODELS[name]().double()
    labels, low_res, seen = labels_of(model, 2), pictures(2).double(), list[tuple[Tensor, Predicted]]()
    predict = model.predict

    def recording(state: object, positions: Tensor) -> Predicted:
        seen.append((positions, predict(state, positions)))
        return seen[-1][1]

    model.predict = recording
    tokens = decode(model, labels, noise=NoiseSource(0, torch.arange(2)), low_res=low_res, guidance_scale=3.0)
    prefix = model.low_res_prefix.start(low_res, guided=True).chunk(2)
    for index, of_labels in enumerate((labels, model.class_embed.null(2))):
        for positions, predicted in seen:
            expected = forced(
                model, tokens.to(low_res) if tokens.is_floating_point() else tokens, of_labels, prefix[index], positions
            )
            torch.testing.assert_close(predicted[index], expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_known_tokens_and_the_image_are_fed_as_in_training() -> None:
    """Rows with different numbers of known tokens, none among them: padding lies behind the prefix."""
    model = MODELS["causal"]()
    assert isinstance(model, CausalGenerator)
    tokens, low_res, labels = tokens_of(model, 3), pictures(3), torch.tensor([0, 1, 2])
    known = torch.zeros(3, 16, dtype=torch.bool)
    known[0, [0, 2, 3, 7, 8]] = True
    known[2, 5] = True
    path = torch.stack([torch.cat([torch.arange(16)[k], torch.arange(16)[~k]]) for k in known])
    whole = model(tokens, path, known.sum(1), labels, prefix=model.low_res_prefix.start(low_res, guided=False))
    state = model.start(labels, guided=False, given=Given(tokens, known), low_res=low_res)
    for step in model.order.steps(known):
        features = model.predict(state, step.positions).features[:, 0]
        for row, position in enumerate(step.positions[:, 0].tolist()):
            if position >= 0:
                expected = whole[row, (path[row] == position).nonzero().item()]
                torch.testing.assert_close(features[row], expected, rtol=1e-4, atol=1e-5)
        model.commit(state, step.positions, tokens.gather(1, step.positions.clamp_min(0)))


@EACH
def test_training_reads_the_image_and_learns_all_weights(name: str) -> None:
    model = MODELS[name](label_dropout=0.5).train()
    tokens, labels = tokens_of(model, 8), labels_of(model, 8)

    def loss(low_res: Tensor) -> Tensor:
        return model.loss(tokens, labels, noise=NoiseSource(3, torch.arange(8)), low_res=low_res).sum

    first = loss(pictures(8))
    gradients = torch.autograd.grad(first, list(model.low_res_prefix.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.isclose(first, loss(pictures(8, seed=1)), rtol=1e-6, atol=0)


@EACH
def test_the_image_is_dropped_with_the_class_and_the_class_alone_too(name: str) -> None:
    """Pictures are enlarged without a class by default, which no row of training was, as both were dropped together."""
    model = MODELS[name](label_dropout=1.0).train()
    labels, noise = labels_of(model, 8), NoiseSource(0, torch.arange(8))
    null = model.low_res_prefix.null + model.low_res_prefix.positions
    dropped, prefix = model.training_condition(labels, pictures(8), noise)
    assert dropped.equal(model.class_embed.null(8)) and prefix.equal(null.expand(8, -1, -1))
    model = MODELS[name](label_dropout=0.5).train()
    noise, many = NoiseSource(0, torch.arange(800)), labels.repeat(100)
    dropped, prefix = model.training_condition(many, pictures(800), noise)
    gone = (prefix == null).flatten(1).all(1)
    assert gone.float().mean().item() == pytest.approx(0.5, abs=0.1)
    if model.config.num_classes:
        unlabelled = dropped == model.config.num_classes
        assert unlabelled[gone].all() and dropped[~unlabelled].equal(many[~unlabelled])
        assert unlabelled[~gone].float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert noise.draw == (2 if model.config.num_classes else 1)
    assert torch.equal(model.eval().training_condition(labels, pictures(8), noise)[0], labels)


@EACH
def test_seeds_of_models_without_an_image_stay(name: str) -> None:
    model, noise = MODELS[name](low_res=None, label_dropout=0.5).train(), NoiseSource(0, torch.arange(8))
    labels = labels_of(model, 8)
    dropped = NoiseSource(0, torch.arange(8)).uniform() < 0.5
    found, prefix = model.training_condition(labels, None, noise)
    assert found.equal(torch.where(dropped, model.config.num_classes, labels)) and prefix is None
    assert noise.draw == 1


@EACH
def test_bfloat16_weights_take_float32_images(name: str) -> None:
    """The embedding of the image raised: its input was float32, its bias bfloat16."""
    model = MODELS[name]()
    tokens = tokens_of(model, 2)
    model = model.bfloat16()
    labels, low_res = labels_of(model, 2), pictures(2)
    images = enlarge(model, low_res, labels, guidance_scale=2.0)
    assert images.dtype == torch.float32 and images.isfinite().all()
    reduced = torch.nn.functional.interpolate(
        enlarge(model, 0.2 * low_res, labels), (4, 4), mode="bicubic", antialias=True
    )
    assert (reduced - 0.2 * low_res).abs().max() <= 1 / 255
    loss = model.loss(tokens, labels, noise=NoiseSource(0, torch.arange(2)), low_res=low_res)
    assert loss.sum.isfinite()


@EACH
def test_rows_are_independent(name: str) -> None:
    model = MODELS[name]()
    low_res, labels = pictures(3), torch.zeros(3, dtype=torch.int64)
    whole = generate(model, labels, low_res=low_res, guidance_scale=2.0)
    single = generate(model, labels, low_res=low_res, guidance_scale=2.0, batch_size=1)
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-3)


@EACH
@torch.no_grad()
def test_predictions_follow_the_image_but_under_the_null_condition(name: str) -> None:
    model = MODELS[name]()
    labels, nothing = torch.zeros(3, dtype=torch.int64), torch.zeros(3, model.order.num_tokens, dtype=torch.bool)
    step = next(iter(model.order.steps(nothing, noise=NoiseSource(0, torch.arange(3)))))
    first, second = (
        model.predict(model.start(labels, guided=True, low_res=pictures(3, seed=seed)), step.positions)
        for seed in (0, 1)
    )
    assert ((first.features - second.features).abs().amax((1, 2)) > 1e-3).all()
    torch.testing.assert_close(first.uncond_features, second.uncond_features)


@EACH
def test_what_is_missing_or_too_much_is_named(name: str) -> None:
    model = MODELS[name]()
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^the model enlarges images of 4x4 pixels and got none; pass low_res\.$"):
        generate(model, labels)
    with pytest.raises(ValueError, match=r"low_res must be \(2, 3, 4, 4\) for 2 images, not \(2, 3, 8, 8\)"):
        generate(model, labels, low_res=pictures(2, 8))
    with pytest.raises(ValueError, match="low_res has 3 images for 2 labels"):
        generate(model, labels, low_res=pictures(3))
    plain = MODELS[name](low_res=None)
    assert not [key for key in plain.state_dict() if "low_res" in key]
    with pytest.raises(ValueError, match="the model takes no low-resolution image; leave low_res out"):
        generate(plain, labels, low_res=pictures(2))
    with pytest.raises(ValueError, match="pass low_res"):
        model.loss(tokens_of(model, 2), labels, noise=NoiseSource(0, torch.arange(2)))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="low_res_patch 3 must divide low_res 4"):
        make_var(low_res=4, low_res_patch=3)
    for side in (3, 8):
        with pytest.raises(ValueError, match=f"low_res {side} must divide the 8 pixels"):
            make_var(low_res=side, low_res_patch=1)
