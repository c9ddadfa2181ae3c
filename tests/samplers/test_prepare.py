"""A prepared model draws what it drew before, faster."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import genaim.core.inference
from apps.bench_plain import plain
from genaim.core.hardware import autocast
from genaim.core.noise import NoiseSource
from genaim.core.transformer import Block
from genaim.evaluation.cifar import load_cifar_resnet
from genaim.evaluation.digits import load_digits
from genaim.evaluation.quality import frechet_distance
from genaim.heads import SamplingOptions
from genaim.heads.diffusion import DenoiserBlock
from genaim.models import GenerativeModel
from genaim.pretrained import load_generator
from genaim.tokenizers.autoencoder import PhaseUpsample, Upsample
from samplers import generate, prepare
from samplers.decode import decode
from tests.samplers.test_matrix import CASES, UNGUIDED, build
from tests.tiny import SINGLE_GRID, make_model, make_var

LABELS = torch.tensor([0, 1, 4])
GREEDY = SamplingOptions(temperature=0)


def tokens_of(model: GenerativeModel, scale: float, options: SamplingOptions | None = None) -> Tensor:
    return decode(model, LABELS, noise=NoiseSource(0, torch.arange(3)), guidance_scale=scale, options=options)


@pytest.mark.parametrize(("order", "head", "tokenizer"), [c for c in CASES if c[0] in ("raster", "random")])
def test_every_head_draws_the_same(order: str, head: str, tokenizer: str) -> None:
    """Categorical tokens are equal; continuous ones agree to 40 dB, as at another batch size."""
    scale = 1.0 if head in UNGUIDED else 2.0
    expected = tokens_of(build(order, head, tokenizer), scale)
    model = build(order, head, tokenizer)
    assert prepare(model) is None
    found = tokens_of(model, scale)
    if expected.dtype == torch.int64:
        assert found.equal(expected)
    else:
        assert (found - expected).square().mean() < 1e-4 * expected.square().mean()


def drawn_in_bfloat16(head: str, options: SamplingOptions) -> tuple[Tensor, Tensor]:
    """Of a prepared model and of another, from the same features."""
    tokenizer = {"categorical": "codes", "coupled": "patches"}.get(head, "latents")
    ready, model = (make_model("mar", SINGLE_GRID[tokenizer](), head) for _ in range(2))
    prepare(ready, torch.bfloat16)
    features = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), autocast(model.device, torch.bfloat16):
        found, expected = (
            m.head.sample(features, options, noise=NoiseSource(0, torch.arange(3))) for m in (ready, model)
        )
    return found, expected


@pytest.mark.parametrize("head", ["categorical", "gaussian_unit", "coupled"])
def test_the_last_layer_of_a_head_stays_float32(head: str) -> None:
    torch.testing.assert_close(*drawn_in_bfloat16(head, SamplingOptions()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("head", "steps"), [("diffusion", 10), ("diffusion", 100), ("flow", 10)])
def test_half_precision_serves_the_steps_that_bear_it(head: str, steps: int) -> None:
    found, expected = drawn_in_bfloat16(head, SamplingOptions(diffusion_steps=steps))
    assert found.dtype == torch.float32 and not found.equal(expected)
    assert (found - expected).square().mean() < 1e-4 * expected.square().mean()  # 40 dB


@pytest.mark.parametrize("shared", [False, True])
def test_greedy_tokens_of_var_are_those_of_the_plain_way(shared: bool) -> None:
    """(Rounding could tell other ones where the two best nearly tie; among these few tokens none do.)"""
    model = make_var(shared_adaln=shared)
    with plain(model):
        expected, drawn = tokens_of(model, 3.0, GREEDY), tokens_of(model, 3.0)
    assert tokens_of(model, 3.0, GREEDY).equal(expected)  # afterwards it is as it was
    prepare(model)
    assert tokens_of(model, 3.0, GREEDY).equal(expected)
    assert tokens_of(model, 3.0).equal(drawn)


def test_the_plain_way_of_mar_draws_the_same() -> None:
    model = make_model("mar", SINGLE_GRID["latents"](), "diffusion")
    with plain(model):
        expected = tokens_of(model, 2.0)
    prepare(model)
    torch.testing.assert_close(tokens_of(model, 2.0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mnist-var", "emoji-var", "mnist-aim"])
def test_greedy_tokens_of_bundled_models_are_kept(name: str) -> None:
    """In float32 all, but for near ties, whose images then differ from there on."""
    model = load_generator(name)
    labels = torch.arange(8) % max(model.config.num_classes, 1)
    options = GREEDY if name != "mnist-aim" else SamplingOptions(temperature=0.1)
    before = generate(model, labels, options=options)
    prepare(model)
    after = generate(model, labels, options=options)
    same = (before - after).abs().amax((1, 2, 3)) < 1 / 127
    assert same.sum() >= 7


def test_bfloat16_pictures_stay_near_those_of_float32() -> None:
    """Prepared or not, bfloat16 rounds alike: weights are cast once instead of at every batch."""
    names = torch.arange(8) % 10
    model = load_generator("mnist-var")
    rounded = generate(model, names, dtype=torch.bfloat16)
    another = generate(model, names, seed=1, dtype=torch.bfloat16)
    prepare(model, torch.bfloat16)
    fast = generate(model, names, dtype=torch.bfloat16)
    assert (fast - rounded).abs().mean() < 0.2 * (another - rounded).abs().mean()


def test_what_cannot_be_prepared_or_done_afterwards_is_refused() -> None:
    model = make_model("mar", SINGLE_GRID["latents"](), "diffusion")
    with pytest.raises(ValueError, match=r"prepared for float32 and bfloat16, not for torch\.float16"):
        prepare(model, torch.float16)
    with pytest.raises(ValueError, match=r"float32 weights, not of torch\.bfloat16; load it anew"):
        prepare(make_var().bfloat16())
    prepare(model, torch.bfloat16)
    expected = generate(model, LABELS, dtype=torch.bfloat16)
    assert prepare(model, torch.bfloat16) is None  # once more is once
    assert generate(model, LABELS, dtype=torch.bfloat16).equal(expected)
    with pytest.raises(ValueError, match=r"is prepared for torch\.bfloat16, not for torch\.float32; load it anew"):
        prepare(model)
    with pytest.raises(ValueError, match=r"is prepared for torch\.bfloat16, not for torch\.float32; pass that"):
        generate(model, LABELS)
    for change in (copy.deepcopy, lambda m: m.double(), lambda m: m.state_dict(), lambda m: m.tokenizer.state_dict()):
        with pytest.raises(ValueError, match="made ready for sampling"):
            change(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_packed_weights_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, an ARM CPU, or an old x86."""
    monkeypatch.setattr(genaim.core.inference, "can_pack", lambda device, dtype: False)
    model, other = make_var(), make_var()
    prepare(other, dtype)
    with autocast(model.device, dtype):
        assert tokens_of(other, 2.0).equal(tokens_of(model, 2.0))


@torch.no_grad()
def test_phases_enlarge_as_repeated_pixels_do() -> None:
    torch.manual_seed(0)
    upsample = Upsample(3).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(PhaseUpsample(upsample)(x), upsample(x), rtol=1e-12, atol=1e-12)


def test_a_missing_compiler_is_told_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **keywords: object) -> None:
        raise RuntimeError("no compiler found\nhere")

    monkeypatch.setattr(torch, "compile", fail)
    model = make_var()
    expected = tokens_of(model, 2.0)
    assert prepare(model, compiled=True) == "no compiler found here"
    assert tokens_of(model, 2.0).equal(expected)


@pytest.mark.parametrize("kind", ["var", "mar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiler_can_trace_a_prepared_model(kind: str, dtype: torch.dtype) -> None:
    model = make_var() if kind == "var" else make_model("mar", SINGLE_GRID["latents"](), "diffusion")
    prepare(model, dtype)
    expected = generate(model, LABELS, dtype=dtype)
    for module in model.modules():
        if isinstance(module, Block | DenoiserBlock):
            module.compile(backend="aot_eager")
    torch.testing.assert_close(generate(model, LABELS, dtype=dtype), expected, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_a_compiled_model_draws_the_same() -> None:
    model = make_var()
    expected = tokens_of(model, 2.0)
    if reason := prepare(model, compiled=True):
        pytest.skip(f"torch.compile fails here: {reason}")
    assert tokens_of(model, 2.0).equal(expected)


def test_digits_and_their_distance_are_kept_in_bfloat16(data_root: Path) -> None:
    """Class agreement by nearest neighbours among real digits, and Frechet distances by an offline extractor."""
    labels, real = torch.arange(100) % 10, data_root / "mnist"
    images, classes = load_digits(real, "train", 3000)
    cnn = load_cifar_resnet(data_root / "classifiers" / "cifar10_resnet56.safetensors")

    def judged(drawn: Tensor) -> tuple[float, Tensor]:
        grey = drawn.mean(1).flatten(1)
        nearest = torch.cdist(grey, images.mean(1).flatten(1)).argmin(1)
        with torch.no_grad():
            return (classes[nearest] == labels).float().mean().item(), cnn.features(drawn)

    model = load_generator("mnist-var")
    slow, features = judged(generate(model, labels))
    other = judged(generate(model, labels, seed=1))[1]
    prepare(model, torch.bfloat16)
    fast, found = judged(generate(model, labels, dtype=torch.bfloat16))
    assert slow > 0.85 and abs(fast - slow) < 0.03
    noise = frechet_distance(features, other)  # of two seeds
    assert frechet_distance(features, found) < noise / 2
    with torch.no_grad():
        truth = cnn.features(images[:500])
    assert abs(frechet_distance(found, truth) - frechet_distance(features, truth)) < noise
