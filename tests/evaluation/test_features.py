"""Features of a data set are those of every image, at every layer."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from genaim.data import Batch
from genaim.evaluation import features as features_module
from genaim.evaluation.features import ModelFeatures, PixelFeatures, extract, layers_at_a_time, untrained
from genaim.models import AIM, AIMConfig, CausalGenerator
from tests.tiny import make_codes, make_model, make_patches


def make_aim(**changes: object) -> AIM:
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": 2, "width": 16, "depth": 3, "num_heads": 2, "head_depth": None}
    return AIM(AIMConfig.model_validate({**size, **changes})).eval()


MODELS = {
    "aim": make_aim,
    "pixels": lambda: make_model("causal", make_patches(), "logistic", depth=3),
    "codes": lambda: make_model("causal", make_codes(), "categorical", depth=3, conditioning="none"),
}


def data(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, torch.arange(count) % 3


def batches(size: int) -> Iterator[Batch]:
    images, labels = data()
    for i in range(0, len(images), size):
        index = torch.arange(i, min(i + size, len(images)))
        yield Batch(images[index], labels[index], index, index - i)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_layers_are_those_of_the_model(name: str) -> None:
    """Every choice that `features` takes; equal ones are one layer."""
    model, (images, labels) = MODELS[name](), data()
    chosen = [0, 2, -1, "norm", "last2", (0, 2), None]
    source = ModelFeatures(model, chosen)
    default = "mean of 0-2" if name == "aim" else None  # all of three blocks, or the norm
    assert list(source.layers) == ["0", "2", "norm", "mean of 1-2", "mean of 0,2", *filter(None, [default])]
    found = extract(source, batches(3), patches_of=["norm", "mean of 0,2"])
    for layer, wanted in zip(source.layers, [0, 2, "norm", "last2", (0, 2), None], strict=False):
        torch.testing.assert_close(found.pooled[layer], model.features(images, layer=wanted, pool="mean"))
    torch.testing.assert_close(found.patches["norm"], model.features(images, layer="norm"))
    torch.testing.assert_close(found.patches["mean of 0,2"], model.features(images, layer=(0, 2)))
    assert list(found.patches) == ["norm", "mean of 0,2"] and found.labels.equal(labels)
    assert list(ModelFeatures(model).layers)[:4] == ["0", "1", "2", "norm"]


@pytest.mark.parametrize("name", MODELS)
def test_images_are_independent(name: str) -> None:
    source = ModelFeatures(MODELS[name]())
    whole, single = (extract(source, batches(size), patches_of=source.layers) for size in (7, 1))
    for layer in source.layers:
        torch.testing.assert_close(single.pooled[layer], whole.pooled[layer], rtol=0, atol=1e-5)
        torch.testing.assert_close(single.patches[layer], whole.patches[layer], rtol=0, atol=1e-5)


def test_blocks_behind_the_last_layer_are_not_computed() -> None:
    class Broken(nn.Module):
        def forward(self, *arguments: object) -> Tensor:
            raise AssertionError("not needed")

    model = make_aim()
    model.transformer.blocks[2] = Broken()
    source = ModelFeatures(model)
    assert extract(source.only(["1", "0"]), batches(4)).pooled.keys() == {"1", "0"}
    with pytest.raises(AssertionError, match="not needed"):
        extract(source.only(["norm"]), batches(4))


def test_pixels() -> None:
    images, _ = data()
    found = extract(PixelFeatures(2), batches(4), patches_of=["pixels"])
    torch.testing.assert_close(found.pooled["pixels"], (images.flatten(1) + 1) / 2)
    assert found.patches["pixels"].shape == (7, 16, 12)
    grey = next(iter(PixelFeatures(2)(images.mean(1, keepdim=True).expand(-1, 3, -1, -1))))
    assert grey.pooled.shape == (7, 64) and grey.patches.shape == (7, 16, 4)


@pytest.mark.parametrize("name", MODELS)
def test_an_untrained_model_has_fresh_weights(name: str) -> None:
    model = MODELS[name]()
    before = torch.random.get_rng_state()
    fresh, again, other = untrained(model, 1), untrained(model, 1), untrained(model, 2)
    assert torch.random.get_rng_state().equal(before)
    qkv = "transformer.blocks.0.attn.qkv.weight"
    weights = [m.state_dict()[qkv] for m in (fresh, again, other, model)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2]) and not weights[0].equal(weights[3])
    assert fresh.config == model.config and not fresh.training


def test_layers_are_kept_in_groups_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    source, (images, _) = ModelFeatures(make_aim(), [0, 1, 2, "norm", None]), data()
    assert layers_at_a_time(source, images, 7) == [list(source.layers)]
    monkeypatch.setattr(features_module, "PATCH_BYTES", 2.5 * 16 * 16 * 4 * 7)  # patches, channels, bytes, images
    assert layers_at_a_time(source, images, 7) == [["0", "1"], ["2", "norm"], ["mean of 0-2"]]
    assert [len(group) for group in layers_at_a_time(source, images, 1000)] == [1] * 5


def test_images_need_classes() -> None:
    with pytest.raises(ValueError, match="no images to extract"):
        extract(PixelFeatures(2), [])
    images, labels = data()
    labels[3] = -1
    batch = Batch(images, labels, torch.arange(7), torch.arange(7))
    with pytest.raises(ValueError, match="1 of 7 images have no class to probe for"):
        extract(PixelFeatures(2), [batch])


# Generators


@torch.no_grad()
def test_features_of_a_generator_are_those_of_known_tokens_without_a_class() -> None:
    """Teacher-forced with all tokens given beforehand, and the null class."""
    model = make_model("causal", make_codes(), "categorical", order="checkerboard")
    assert isinstance(model, CausalGenerator)
    images, _ = data()
    tokens = model.tokenizer.encode(images)
    path = model.order.path().expand(len(tokens), -1)
    null = torch.full((len(tokens),), model.config.num_classes)
    expected = model(tokens, path, torch.full((len(tokens),), model.order.num_tokens), null)
    torch.testing.assert_close(model.features(images), expected)
    torch.testing.assert_close(model.features(images, pool="mean"), expected.mean(1))
    plain = make_model("causal", make_codes(), "categorical", order="checkerboard", known_first=0.0)
    torch.testing.assert_close(plain.features(images), plain(tokens, path, torch.zeros_like(null), null))


@pytest.mark.parametrize("known_first", [0.5, 0.0])
@torch.no_grad()
def test_what_an_element_of_a_generator_sees(known_first: float) -> None:
    """All tokens but the last of the path where training had known-first sequences, else those before it."""
    model = make_model("causal", make_patches(), "logistic", known_first=known_first)
    images, _ = data(1)
    before = model.features(images, layer=-1)
    for patch in range(16):
        changed = images.clone()
        row, column = 2 * (patch // 4), 2 * (patch % 4)
        changed[:, :, row : row + 2, column : column + 2] *= -0.5
        moved = ((model.features(changed, layer=-1) - before).abs().amax((0, 2)) > 1e-6).tolist()
        first = 0 if known_first else patch + 1  # element j carries the token before the j-th
        assert moved == [patch < 15 and element >= first for element in range(16)]


def test_generators_refuse_what_they_cannot() -> None:
    images, _ = data()
    model = make_model("causal", make_patches(), "logistic")
    with pytest.raises(ValueError, match="layer 5 is not in this model of 2 blocks"):
        model.features(images, layer=5)
    with pytest.raises(ValueError, match="pool is 'max'"):
        model.features(images, pool="max")
    with pytest.raises(ValueError, match="enlarges pictures, and gives no features"):
        make_model("causal", make_patches(), "logistic", low_res=4).features(images)
