"""The multi-scale VQ tokenizer and its codebook: round trips, gradients, revival."""

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.tokenizers import MultiScaleVQ, MultiScaleVQConfig, fingerprint
from genaim.tokenizers.codebook import Codebook, CodebookConfig
from genaim.training.config import TokenizerRunConfig, parse_run
from tests.tiny import make_tokenizer


def build(**codebook: object) -> MultiScaleVQ:
    return make_tokenizer(patch_nums=[1, 2, 3, 4], num_residual_convs=4, codebook=codebook)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes_and_ranges(images: Tensor) -> None:
    tokenizer = build()
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, 30)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < 32
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


def test_rows_are_independent(images: Tensor) -> None:
    tokenizer = build()
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert tokenizer.encode(images).equal(alone)


def test_more_scales_code_the_latent_better(images: Tensor) -> None:
    """Each scale codes what is left, so with a dense codebook the residual shrinks."""
    tokenizer = build(size=4096)
    torch.nn.init.zeros_(tokenizer.residual_convs.convs[0].weight)
    tokenizer.residual_convs.ratio = 0.0
    latent = torch.randn(2, 4, 4, 4)
    running = tokenizer.running_latents(tokenizer.quantize(latent))
    errors = [(latent - f).square().mean().item() for f in running]
    assert errors[-1] < 0.2 * latent.square().mean().item()
    assert errors == sorted(errors, reverse=True)


def test_inputs_of_a_scale_ignore_the_tokens_of_later_scales(images: Tensor) -> None:
    tokenizer = build()
    tokens = tokenizer.encode(images)
    inputs = tokenizer.scale_inputs(tokens)
    assert inputs.shape == (3, 29, 4)
    moved = tokens.clone()
    moved[:, 14:] = (moved[:, 14:] + 1) % 32  # the last scale
    assert tokenizer.scale_inputs(moved).equal(inputs)
    moved[:, 5] = (moved[:, 5] + 1) % 32  # in the third scale: moves the inputs of the fourth only
    change = (tokenizer.scale_inputs(moved) - inputs).abs().amax((0, 2))
    assert (change[:13] == 0).all()
    assert (change[13:] > 0).any()


def test_token_mask_hides_every_token_that_overlaps() -> None:
    tokenizer = build()
    keep = torch.ones(1, 8, 8, dtype=torch.bool)
    keep[0, 0, 7] = False  # one pixel, top right
    mask = tokenizer.token_mask(keep)[0]
    maps = [m.bool() for m in torch.split(mask, [1, 4, 9, 16])]
    for side, kept in zip((1, 2, 3, 4), maps, strict=True):
        expected = torch.ones(side, side, dtype=torch.bool)
        expected[0, -1] = False
        assert kept.view(side, side).equal(expected)
    assert tokenizer.token_mask(torch.ones(1, 8, 8, dtype=torch.bool)).all()


def test_half_of_a_coarse_token_makes_it_known() -> None:
    tokenizer = make_tokenizer()
    keep = torch.ones(3, 8, 8, dtype=torch.bool)
    keep[0, :4] = False  # the upper half
    keep[1, :5] = False
    keep[2] = False
    known = tokenizer.known_tokens(keep)
    assert known.sum(1).tolist() == [1 + 2 + 8, 0 + 2 + 4, 0]
    assert (known | ~tokenizer.token_mask(keep)).all(), "a token that is kept whole is known"


def test_token_mask_follows_the_area_resize_of_the_latent() -> None:
    """A hidden pixel hides its latent cell, and every token whose resize reads that cell (found by moving the cell)."""
    tokenizer = build()
    for column in range(8):
        keep = torch.ones(1, 8, 8, dtype=torch.bool)
        keep[0, :, column] = False
        latent = torch.zeros(1, 4, 4, 4)
        latent[..., column // 2] = 1
        reads = torch.cat([tokenizer.to_side(latent, side)[0, 0].flatten() > 0 for side in (1, 2, 3, 4)])
        assert tokenizer.token_mask(keep)[0].equal(~reads)


def test_quantisation_is_float32_under_autocast() -> None:
    tokenizer = build(size=1024)
    latent = torch.randn(8, 4, 4, 4)
    expected = tokenizer.quantize(latent)
    latents = tokenizer.tokens_to_latent(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.quantize(latent).equal(expected)
        assert tokenizer.tokens_to_latent(expected).equal(latents)


def test_codes_are_drawn_by_their_distance() -> None:
    codebook, vectors = Codebook(CodebookConfig(size=3), 2), torch.tensor([0.0, 0.5]).view(1, 2, 1, 1)
    codebook.weight.data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    expected = torch.softmax(torch.tensor([-0.25, -0.25, -1.25]) / 0.8, 0)
    count = 4000
    drawn = codebook.draw(vectors.expand(count, -1, -1, -1), 0.8, NoiseSource(0, torch.arange(count))).flatten()
    assert torch.allclose(drawn.bincount(minlength=3) / count, expected, atol=0.03)
    assert codebook.draw(vectors + 0.1, 1e-6, NoiseSource(0, torch.arange(1))).equal(codebook.nearest(vectors + 0.1))


def test_drawn_codes_belong_to_the_image_and_later_scales_mend_them() -> None:
    tokenizer = build(size=1024)
    tokenizer.codebook.weight.data = torch.randn(1024, 4, generator=torch.Generator().manual_seed(0))
    latent = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    nearest = tokenizer.quantize(latent)
    drawn = tokenizer.quantize(latent, temperature=0.5, noise=NoiseSource(0, torch.arange(6)))
    assert (drawn != nearest)[:, :14].float().mean() > 0.5
    alone = tokenizer.quantize(latent[2:3], temperature=0.5, noise=NoiseSource(0, torch.tensor([2])))
    assert alone.equal(drawn[2:3])
    errors = [(tokenizer.running_latents(drawn)[k] - latent).square().mean() for k in (2, 3)]
    with pytest.raises(ValueError, match=r"temperature 0\.5 draws codes, which needs noise"):
        tokenizer.quantize(latent, temperature=0.5)
    assert errors[1] < errors[0]  # the last scale takes the nearest codes of what is left


def test_an_incomplete_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"7 tokens are not a whole number of scales \[1, 2, 3, 4\]"):
        build().running_latents(torch.zeros(1, 7, dtype=torch.int64))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes images \(B, 3, 8, 8\), not \(1, 3, 16, 16\)"):
        build().encode(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("rotation", [False, True])
def test_gradient_to_the_encoder(rotation: bool) -> None:
    """Straight through: unchanged. Rotated: the angle between gradient and code becomes that to the latent."""
    codebook = Codebook(CodebookConfig(size=4, rotation=rotation), 6)
    latent = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    quantized = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    passed = codebook.pass_gradient(latent, quantized)
    torch.testing.assert_close(passed, quantized)
    upstream = torch.randn_like(quantized)
    (gradient,) = torch.autograd.grad(passed, latent, upstream)
    if not rotation:
        assert gradient.equal(upstream)
        return
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(gradient, latent, dim=1), cosine(upstream, quantized, dim=1))
    scale = quantized.norm(dim=1) / latent.norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), upstream.norm(dim=1) * scale)


def test_ema_codes_are_the_means_of_what_they_code() -> None:
    """With decay 0 a code is the mean of its vectors; unused codes stay (van den Oord et al. 2017, eq. 6-8)."""
    codebook = Codebook(CodebookConfig(size=3, update="ema", ema_decay=0.0), 2)
    before = codebook.weight.detach().clone()
    vectors = torch.tensor([[1.0, 0], [3, 0], [0, 5]])
    assert codebook.update(vectors, torch.tensor([0, 0, 2]), torch.rand(3)) == 0
    torch.testing.assert_close(codebook.weight[0], torch.tensor([2.0, 0]))
    torch.testing.assert_close(codebook.weight[2], torch.tensor([0.0, 5]))
    assert codebook.weight[1].equal(before[1])
    assert not codebook.weight.requires_grad


def test_dead_codes_come_back() -> None:
    codebook = Codebook(CodebookConfig(size=8, revive_below=0.1, ema_decay=0.5), 2)
    vectors = torch.randn(64, 2)
    tokens = torch.arange(64) % 4  # codes 4 to 7 are never used
    assert codebook.update(vectors, tokens, torch.rand(8)) == 4
    for code in codebook.weight[4:]:
        assert (vectors == code).all(1).any()
    assert codebook.update(vectors, tokens, torch.rand(8)) == 0  # they have been given time


def test_commitment_and_codebook_losses_reach_their_targets(images: Tensor) -> None:
    tokenizer = build().train()
    quantized = tokenizer.quantize_for_training(tokenizer.encode_latent(images))
    assert quantized.tokens.equal(tokenizer.encode(images))
    quantized.loss.sum().backward()
    assert tokenizer.codebook.weight.grad is not None
    assert tokenizer.encoder.conv_in.weight.grad is not None
    assert all(c.weight.grad is not None for c in tokenizer.residual_convs.convs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_nums": [4, 2]}, "must not shrink"),
        ({"num_residual_convs": 4, "patch_nums": [1, 2, 4]}, "leaves convolutions unused with 3 scales; use 3"),
        ({"autoencoder": {"channels": 20, "norm_groups": 8}}, "channels 20 must be a multiple of norm_groups 8"),
    ],
)
def test_impossible_configs_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiScaleVQConfig.model_validate(changes)


def test_patch_nums_must_end_at_the_latent_size() -> None:
    run = {
        "kind": "tokenizer",
        "name": "x",
        "data": {"train": {"path": "x"}, "image_size": 64},
        "tokenizer": {"kind": "multiscale_vq", "patch_nums": [1, 2, 3, 5]},
        "steps": 1,
        "batch_size": 1,
    }
    with pytest.raises(ValueError, match=r"patch_nums ends at 5.*image_size is 64; make them equal") as error:
        parse_run(run, "recipe.yaml")
    assert "\n" not in str(error.value)
    run["tokenizer"] = {"kind": "multiscale_vq", "patch_nums": [1, 2, 3, 4]}
    assert isinstance(parse_run(run, "recipe.yaml"), TokenizerRunConfig)


def test_fingerprints_tell_weights_apart() -> None:
    tokenizer = build()
    before = fingerprint(tokenizer)
    assert before == fingerprint(build())
    tokenizer.codebook.weight.data[0, 0] += 1e-3
    assert fingerprint(tokenizer) != before
