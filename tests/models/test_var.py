"""VAR: training and sampling are one factorisation, rows are independent, presets are the published ones."""

import pytest
import torch

from genaim.core.noise import NoiseSource
from genaim.heads import SamplingOptions
from genaim.models import VARConfig
from samplers import generate
from samplers.decode import decode
from samplers.generate import generate_batches
from tests.tiny import make_tokenizer, make_var


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_cached_steps_equal_teacher_forcing(shared: bool) -> None:
    """What a step predicts from the cache is what training predicts at its positions."""
    model = make_var(shared_adaln=shared).double()
    labels = torch.tensor([1, 4])
    seen = []
    predict = model.predict

    def recording(*arguments: object) -> object:
        seen.append(predict(*arguments))
        return seen[-1]

    model.predict = recording
    tokens = decode(model, labels, noise=NoiseSource(0, torch.arange(2)), guidance_scale=3.0)
    inputs = model.tokenizer.scale_inputs(tokens)
    for index, of_labels in enumerate((labels, model.class_embed.null(2))):
        forced = model(inputs, of_labels)
        torch.testing.assert_close(torch.cat([step[index] for step in seen], dim=1), forced, rtol=0, atol=1e-10)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_pictures_do_not_depend_on_the_batch(guidance_scale: float) -> None:
    """Batch rows are independent (DESIGN: equal tokens but for near ties of the perturbed logits)."""
    model = make_var()
    labels = torch.arange(7) % 5
    options = SamplingOptions(top_k=20, top_p=0.95)
    arguments = {"seed": 3, "options": options, "guidance_scale": guidance_scale}
    whole = generate(model, labels, **arguments)
    for batch_size in (1, 3):
        torch.testing.assert_close(
            generate(model, labels, batch_size=batch_size, **arguments), whole, rtol=0, atol=1e-4
        )
    last = generate(model, labels[5:], first_index=5, **arguments)
    torch.testing.assert_close(last, whole[5:], rtol=0, atol=1e-4)
    assert whole.flatten(1).unique(dim=0).shape[0] == 7


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 1), (2.0, 2)])
def test_guidance_off_computes_no_null_class(guidance_scale: float, rows: int) -> None:
    model = make_var()
    start, states = model.start, []

    def recording(*arguments: object, **options: object) -> object:
        states.append(start(*arguments, **options))
        return states[-1]

    model.start = recording
    decode(model, torch.tensor([0]), noise=NoiseSource(0, torch.arange(1)), guidance_scale=guidance_scale)
    assert states[0].cache.keys.shape[1] == rows


def test_batches_do_not_leave_autocast_on() -> None:
    """Between two batches the caller computes in its own number format."""
    batches = generate_batches(make_var(), torch.tensor([0, 1]), batch_size=1, dtype=torch.bfloat16)
    next(batches)
    assert not torch.is_autocast_enabled("cpu")
    assert next(batches).dtype == torch.float32


def test_loss_is_the_mean_over_scales_and_ignores_the_batch() -> None:
    model = make_var()
    tokens, labels = torch.randint(0, 32, (4, 21)), torch.tensor([0, 1, -1, 4])
    loss = model.loss(tokens, labels, noise=NoiseSource(0, torch.arange(4)))
    assert loss.count == 4 * 21
    torch.testing.assert_close(sum(total for total, _ in loss.parts.values()), loss.sum.detach())
    halves = [
        model.loss(tokens[rows], labels[rows], noise=NoiseSource(0, torch.arange(4)[rows])).sum
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(halves[0] + halves[1], loss.sum)


def test_training_drops_labels_and_paths_by_sample() -> None:
    """Label dropout and drop path belong to the sample, so splitting a batch changes nothing."""
    model = make_var(drop_path=0.5, label_dropout=0.5).train()
    tokens, labels = torch.randint(0, 32, (8, 21)), torch.arange(8) % 5
    rows = torch.arange(8)
    whole = model.loss(tokens, labels, noise=NoiseSource(1, rows)).sum
    parts = [model.loss(tokens[r : r + 1], labels[r : r + 1], noise=NoiseSource(1, rows[r : r + 1])).sum for r in rows]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    assert not torch.isclose(model.loss(tokens, labels, noise=NoiseSource(2, rows)).sum, whole)


def test_the_tokenizer_is_not_trained() -> None:
    model = make_var().train()
    assert not model.tokenizer.training
    assert not any(p.requires_grad for p in model.tokenizer.parameters())
    assert not any(k.startswith("tokenizer.") for k in model.state_dict_without_tokenizer())


@torch.no_grad()
def test_unconditional() -> None:
    model = make_var(num_classes=0)
    images = generate(model, torch.zeros(2, dtype=torch.int64))
    assert images.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="unconditional"):
        generate(model, torch.ones(2, dtype=torch.int64))


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="among 0 to 4"):
        generate(make_var(), torch.tensor([6]))


def test_nothing_to_generate_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images were asked for"):
        generate(make_var(), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("depth", [12, 16, 20, 24, 30, 36])
def test_published_presets(depth: int) -> None:
    """Width 64 x depth, as many heads as blocks, drop path 0.1 x depth / 24; d36 shares AdaLN."""
    trunk = VARConfig(preset=f"d{depth}").transformer()
    assert (trunk.width, trunk.num_heads, trunk.mlp_ratio) == (64 * depth, depth, 4.0)
    assert trunk.drop_path == pytest.approx(0.1 * depth / 24)
    assert trunk.conditioning == ("shared_adaln" if depth == 36 else "adaln")


def test_a_preset_can_be_changed_and_must_exist() -> None:
    assert VARConfig(preset="d16", drop_path=0.0).transformer().drop_path == 0
    with pytest.raises(ValueError, match=r"unknown preset 'd17'; did you mean 'd1"):
        VARConfig(preset="d17")


def test_codes_are_drawn_anew_in_training_and_are_the_nearest_in_evaluation() -> None:
    tokenizer = make_tokenizer()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = make_var(tokenizer, code_temperature=0.05).train()
    stored = model.encode_for_cache(images)
    assert stored.shape == (4, 16, 4) and model.cached == "latents"
    first, second = (model.from_cache(stored, NoiseSource(seed, torch.arange(4))) for seed in (0, 1))
    assert not first.equal(second) and model.loss(first, torch.arange(4), noise=NoiseSource(0, torch.arange(4)))
    assert model.eval().from_cache(stored, NoiseSource(0, torch.arange(4))).equal(tokenizer.encode(images))
    plain = make_var(tokenizer)
    assert plain.encode_for_cache(images).equal(tokenizer.encode(images)) and plain.cached == "tokens"


def test_coarse_training_learns_the_first_scales_of_some_images() -> None:
    """Their loss and gradient are those of the whole sequence, since no scale sees a later one."""
    tokenizer = make_tokenizer()
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens, labels = tokenizer.encode(images), torch.arange(8) % 5
    whole = make_var(tokenizer, drop_path=0.0, label_dropout=0.0).train()
    coarse = make_var(tokenizer, drop_path=0.0, label_dropout=0.0, coarse_share=0.5, coarse_scales=2).train()
    loss = coarse.loss(tokens, labels, noise=NoiseSource(0, torch.arange(8)))
    counts = {name: int(count) for name, (_, count) in loss.parts.items()}
    assert counts["scale_1"] == 8 and counts["scale_2"] == 32 and 0 < counts["scale_3"] < 128
    rows = counts["scale_3"] // 16
    assert int(loss.count) == 8 * 5 + rows * 16
    reference = whole.loss(tokens, labels, noise=NoiseSource(0, torch.arange(8)))
    for name in ("scale_1", "scale_2"):
        torch.testing.assert_close(loss.parts[name][0], reference.parts[name][0])
    for share in (1e-9, 1 - 1e-9):  # a process whose rows are all of one kind reports the same parts as the others
        extreme = make_var(tokenizer, drop_path=0.0, label_dropout=0.0, coarse_share=share, coarse_scales=2).train()
        alike = extreme.loss(tokens, labels, noise=NoiseSource(0, torch.arange(8)))
        assert list(alike.parts) == list(loss.parts)
        assert int(alike.parts["scale_3"][1]) == (128 if share < 0.5 else 0)
        assert int(alike.count) == 8 * (21 if share < 0.5 else 5)
    with pytest.raises(ValueError, match="coarse_share above 0 needs drop_path 0"):
        make_var(tokenizer, drop_path=0.1, coarse_share=0.5)
    coarse.eval()
    assert coarse.loss(tokens, labels, noise=NoiseSource(0, torch.arange(8))).sum.equal(
        whole.eval().loss(tokens, labels, noise=NoiseSource(0, torch.arange(8))).sum
    )


def test_one_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'var' predicts scale after scale, .* patch_nums = \[4\]; take more"):
        make_var(make_tokenizer(patch_nums=[4], num_residual_convs=1))


@torch.no_grad()
def test_a_likelihood_drops_no_label_in_training_mode() -> None:
    model = make_var(label_dropout=1.0)
    tokens, labels = torch.randint(0, 16, (3, model.order.num_tokens)), torch.tensor([0, 1, 2])
    expected = model.eval().log_prob(tokens, labels, noise=NoiseSource(0, torch.arange(3)))
    assert model.train().log_prob(tokens, labels, noise=NoiseSource(0, torch.arange(3))).equal(expected)
