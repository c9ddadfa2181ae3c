"""Likelihood equals that of decoding the image token by token, and is a matter of the images alone."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.data import Batch
from genaim.data.transforms import resize_images
from genaim.evaluation.likelihood import likelihood
from genaim.models import GenerativeModel
from genaim.models.base import gather
from tests.tiny import make_codes, make_latents, make_model, make_patches, make_var

COUNT, SEED = 6, 3


def make(name: str, **changes: Any) -> GenerativeModel:
    """A model of 8x8 pictures in float64, so that nothing is lost in rounding."""
    models = {
        "pixels": lambda: make_model("causal", make_patches(), "coupled", **changes),
        "colour": lambda: make_model("causal", make_patches(grey=False), "logistic", order="spiral", **changes),
        "codes": lambda: make_model("causal", make_codes(), "categorical", order="checkerboard", **changes),
        "latents": lambda: make_model("causal", make_latents(), "mixture", order="random_sequence", **changes),
        "scales": lambda: make_var(**changes),
    }
    return models[name]().double()


def examples(count: int = COUNT) -> Batch:
    """Pictures of 8-bit levels; one has no label."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (count, 3, 8, 8), generator=generator)
    labels = torch.arange(count) % 5
    labels[1:2] = -1
    index = torch.arange(count) + 10
    return Batch(levels.double() / 127.5 - 1, labels, index, torch.arange(count))


def in_batches(batch: Batch, size: int) -> Iterator[Batch]:
    for first in range(0, len(batch), size):
        yield batch.take(torch.arange(len(batch)).ge(first) & torch.arange(len(batch)).lt(first + size))


@torch.no_grad()
def by_decoding(model: GenerativeModel, batch: Batch) -> Tensor:
    """Nats of every image, (B,): each token is scored by `predict` before `commit` shows it to the next step."""
    assert batch.images is not None
    total = []
    for row in range(len(batch)):
        one = batch.take(torch.arange(len(batch)) == row)
        noise = NoiseSource(SEED, one.index)
        tokens = model.tokenizer.from_cache(model.tokenizer.encode_for_cache(one.images), noise)
        low_res = None if model.config.low_res is None else reduced(one.images)
        state = model.start(model.class_embed.or_null(one.labels), guided=False, low_res=low_res)
        nothing = torch.zeros(1, model.order.num_tokens, dtype=torch.bool)
        nats = torch.zeros(1, dtype=torch.float64)
        for step in model.order.steps(nothing, noise=noise):
            features, _ = model.predict(state, step.positions)
            wanted = gather(tokens, step.positions)
            nats -= model.head.log_prob(features, wanted).sum(1)
            model.commit(state, step.positions, wanted)
        total.append(nats)
    return torch.cat(total)


def reduced(images: Tensor) -> Tensor:
    return resize_images(images, (4, 4)).double()


@pytest.mark.parametrize("low_res", [None, 4])
@pytest.mark.parametrize("name", ["pixels", "colour", "codes", "latents", "scales"])
def test_it_is_that_of_decoding_token_by_token(name: str, low_res: int | None) -> None:
    model = make(name, low_res=low_res)
    found, each = likelihood(model, [examples()], seed=SEED), by_decoding(model, examples())
    assert found.nats_per_image == pytest.approx(each.mean().item(), rel=1e-6)  # attention of float32 in a cache
    tokens = model.tokenizer.num_tokens
    assert found.nats_per_token == pytest.approx(found.nats_per_image / tokens)
    assert found.standard_error == pytest.approx(each.std().item() / COUNT**0.5 / tokens, rel=1e-5)
    assert (found.images, found.told_class) == (COUNT, COUNT - 1)


@pytest.mark.parametrize("name", ["pixels", "latents", "scales"])
def test_the_batch_size_does_not_matter(name: str) -> None:
    model = make(name)
    whole = likelihood(model, [examples()], seed=SEED)
    for size in (1, 4):
        parts = likelihood(model, in_batches(examples(), size), seed=SEED)
        assert parts.nats_per_image == pytest.approx(whole.nats_per_image, rel=1e-12)
        assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-12)
        if whole.nats_per_scale is not None:
            assert parts.nats_per_scale == pytest.approx(whole.nats_per_scale, rel=1e-12)


def test_in_float32_it_moves_by_rounding_only() -> None:
    model = make("pixels").float()
    batch = examples()
    batch.images = batch.images.float()
    whole, parts = (likelihood(model, in_batches(batch, size)).nats_per_image for size in (COUNT, 1))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_scales_add_up_to_the_image() -> None:
    model = make("scales")
    found = likelihood(model, [examples()])
    assert found.nats_per_scale is not None and len(found.nats_per_scale) == 3
    total = sum(nats * size for nats, size in zip(found.nats_per_scale, model.order.sizes, strict=True))
    assert total == pytest.approx(found.nats_per_image)
    assert found.bits_per_dimension is None and found.order == "scales of side 1, 2, 4"
    assert found.uniform_nats_per_token == pytest.approx(math.log(32))


@pytest.mark.parametrize(("name", "dimensions"), [("pixels", 64), ("colour", 192)])
def test_bits_count_the_values_of_the_pixels(name: str, dimensions: int) -> None:
    found = likelihood(make(name), [examples()])
    assert found.dimensions == dimensions
    assert found.bits_per_dimension == pytest.approx(found.nats_per_image / dimensions / math.log(2))
    assert found.uniform_nats_per_token == pytest.approx(dimensions / 16 * math.log(256))
    assert found.of == ("8-bit grey pixels, exact" if name == "pixels" else "8-bit pixels, exact")


@torch.no_grad()
def test_all_values_of_a_pixel_have_probability_one_together() -> None:
    """The likelihoods of all 256 pictures of one grey pixel add up to 1."""
    model = make_model("causal", make_patches(image_size=1, patch_size=1), "logistic").double()
    levels = torch.arange(256).double()[:, None, None, None].expand(-1, 3, 1, 1) / 127.5 - 1
    batch = Batch(levels, torch.zeros(256, dtype=torch.int64), torch.arange(256), torch.arange(256))
    nats = torch.tensor([likelihood(model, [one]).nats_per_image for one in in_batches(batch, 1)], dtype=torch.float64)
    assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_densities_are_no_probabilities() -> None:
    found = likelihood(make("latents"), [examples()])
    assert (found.bits_per_dimension, found.uniform_nats_per_token) == (None, None)
    assert found.of == "density of tokens of 3 continuous values (not pixels)"
    assert found.order == "random_sequence order, no token known beforehand"


def test_classes_can_be_left_out() -> None:
    model, batch = make("codes"), examples()
    told, untold = likelihood(model, [batch]), likelihood(model, [batch], classes=False)
    assert untold.told_class == 0 and untold.nats_per_image != told.nats_per_image
    batch.labels = torch.full_like(batch.labels, -1)
    assert likelihood(model, [batch]).nats_per_image == untold.nats_per_image


def test_known_first_training_changes_nothing_here() -> None:
    """Half of such training sequences give tokens beforehand; scored are all, in plain order."""
    known, plain = make("pixels", known_first=1.0), make("pixels", known_first=0.0)
    assert likelihood(known, [examples()]) == likelihood(plain, [examples()])


@pytest.mark.parametrize(
    ("kind", "head", "words"),
    [("mar", "diffusion", "mar with a diffusion head"), ("causal", "flow", "causal with a diffusion head")],
)
def test_models_without_a_density_say_so(kind: str, head: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"the model \({words}\) has no exact density"):
        likelihood(make_model(kind, make_latents(), head), iter([]))
    with pytest.raises(ValueError, match="mar with a categorical head"):
        likelihood(make_model("mar", make_codes(), "categorical"), iter([]))


def test_no_images_and_other_classes() -> None:
    with pytest.raises(ValueError, match="no images to score"):
        likelihood(make("scales"), [])
    batch = examples()
    batch.labels = batch.labels + 5
    with pytest.raises(ValueError, match="must be among 0 to 4"):
        likelihood(make("scales"), [batch])
    assert likelihood(make("scales"), [examples(1)]).standard_error is None
