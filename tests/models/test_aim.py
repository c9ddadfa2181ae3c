"""AIM: which patch predicts which, what the loss counts, and which features there are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.core.order import ORDERS, prefix_steps
from genaim.models import AIM, AIMConfig
from genaim.tokenizers.patches import images_to_patches

PATCH, SIDE = 2, 4
N = SIDE**2
ORDER_NAMES = ["raster", "spiral", "checkerboard", "fixed_random"]


def make_aim(**changes: object) -> AIM:
    """Seeded, for 8x8 pictures in 16 patches; no norm is the identity."""
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": PATCH, "width": 16, "depth": 3, "num_heads": 2}
    model = AIM(AIMConfig.model_validate({**size, "head_depth": 2, "head_width": 8, **changes}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


def pictures(count: int = 3, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64) * 2 - 1


def change_patch(images: Tensor, position: int) -> Tensor:
    """Another picture in one patch."""
    row, column = PATCH * (position // SIDE), PATCH * (position % SIDE)
    changed = images.clone()
    changed[:, :, row : row + PATCH, column : column + PATCH] = pictures(len(images), PATCH)
    return changed


@pytest.mark.parametrize("order", ORDER_NAMES)
@torch.no_grad()
def test_a_patch_is_predicted_from_those_before_it(order: str) -> None:
    """Inside the prefix all patches see each other; behind it the order decides."""
    model, images, prefix = make_aim(order=order), pictures(1), 5
    path = ORDERS[order](SIDE, SIDE).path().tolist()
    lengths = torch.tensor([prefix])
    before = model.predict(images, lengths)
    for rank, position in enumerate(path):
        moved = model.predict(change_patch(images, position), lengths) - before
        moved = moved.abs().amax((0, 2)) > 1e-9  # entry j is patch j + 1 of the order
        first = 0 if rank < prefix else rank
        assert not moved[:first].any()
        assert moved[first:].all()


@pytest.mark.parametrize("order", ORDER_NAMES)
@torch.no_grad()
def test_the_loss_is_that_of_the_paper(order: str) -> None:
    """Written out patch by patch: normalised pixels of the patches behind each image's prefix."""
    model, images, noise = make_aim(order=order), pictures(), NoiseSource(4, torch.arange(3))
    lengths = model.draw_prefix(NoiseSource(4, torch.arange(3)))
    path = ORDERS[order](SIDE, SIDE).path().tolist()
    total, count = 0.0, 0
    for image, length in zip(images, lengths.tolist(), strict=True):
        predicted = model.predict(image[None], torch.tensor([length]))[0]
        for j in range(length, N):
            row, column = divmod(path[j], SIDE)
            pixels = image[:, PATCH * row : PATCH * row + PATCH, PATCH * column : PATCH * column + PATCH]
            pixels = pixels.permute(1, 2, 0).flatten()  # (row, column, channel)
            target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            total, count = total + (predicted[j - 1] - target).square().mean(), count + 1
    loss = model.loss(images, noise=noise)
    torch.testing.assert_close(loss.sum, total)
    assert loss.count == count


@torch.no_grad()
def test_rows_of_the_loss_are_independent() -> None:
    model, images, rows = make_aim(), pictures(5), torch.arange(5)
    whole = model.loss(images, noise=NoiseSource(1, rows))
    parts = [model.loss(images[r : r + 1], noise=NoiseSource(1, rows[r : r + 1])) for r in rows]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert sum(p.count for p in parts) == whole.count
    assert not torch.isclose(model.loss(images, noise=NoiseSource(2, rows)).sum, whole.sum)


def test_prefixes_are_uniform_and_leave_something_to_predict() -> None:
    lengths = make_aim().draw_prefix(NoiseSource(0, torch.arange(15_000)))
    counts = lengths.bincount(minlength=N + 1)
    assert counts[0] == counts[N] == 0
    assert ((counts[1:N] - 1000).abs() < 5 * 1000**0.5).all()


@torch.no_grad()
def test_the_order_is_a_mask() -> None:
    """Permuting the sequence equals unpermuted elements with the step ids of their ranks."""
    model, images = make_aim(order="fixed_random"), pictures()
    lengths = torch.tensor([1, 7, 15])
    path = ORDERS["fixed_random"](SIDE, SIDE).path()
    steps = prefix_steps(lengths, N)[:, path.argsort()]
    features = model.features(images, layer="norm", steps=steps)[:, path[:-1]]
    expected = model.pixel_head(features + model.positions[path[:-1]])
    torch.testing.assert_close(model.predict(images, lengths), expected)


@pytest.mark.parametrize("order", ORDER_NAMES)
@pytest.mark.parametrize("pixels", ["symmetric", "imagenet"])
@torch.no_grad()
def test_perfect_predictions_show_the_images(order: str, pixels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And wrong ones spoil the patches behind the prefix only."""
    model, images, rows = make_aim(order=order, pixels=pixels), pictures(), torch.arange(3)
    target, _, _ = model._targets(images)
    monkeypatch.setattr(model, "predict", lambda images, lengths: target[:, 1:])
    torch.testing.assert_close(model.show(images, noise=NoiseSource(0, rows)), images)
    monkeypatch.setattr(model, "predict", lambda images, lengths: target[:, 1:] + 1)
    shown = images_to_patches(model.show(images, noise=NoiseSource(0, rows)), PATCH)
    wrong = (shown - images_to_patches(images, PATCH)).abs().amax(-1) > 1e-3
    rank = ORDERS[order](SIDE, SIDE).step_ids()
    lengths = model.draw_prefix(NoiseSource(0, rows))
    assert wrong.equal(rank >= lengths[:, None])


def test_a_few_steps_learn() -> None:
    """The gradient reaches every weight, and the loss of one batch falls well below that of the mean, 11 / 12."""
    model, images = make_aim().train(), pictures(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        optimizer.zero_grad()
        loss = model.loss(images, noise=NoiseSource(step, torch.arange(4)))
        (loss.sum / loss.count).backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        optimizer.step()
    assert loss.sum / loss.count < 0.5


@torch.no_grad()
def test_features_are_blocks_averages_or_the_norm() -> None:
    model, images = make_aim(), pictures()
    blocks = list(model.hidden_states(images))
    assert len(blocks) == 3
    for layer, expected in {
        0: blocks[0],
        -1: blocks[2],
        (0, 2): (blocks[0] + blocks[2]) / 2,
        "last2": (blocks[1] + blocks[2]) / 2,
        "norm": model.transformer.norm(blocks[2]),
        None: sum(blocks) / 3,  # the last six, or all
    }.items():
        torch.testing.assert_close(model.features(images, layer=layer), expected)
    pooled = model.features(images, layer=1, pool="mean")
    torch.testing.assert_close(pooled, blocks[1].mean(1))
    chosen = make_aim(feature_layers=[-2])
    torch.testing.assert_close(chosen.features(images), blocks[1])
    second = make_aim(version=2)
    torch.testing.assert_close(second.features(images), second.features(images, layer="norm"))


def test_the_published_features_are_those_of_the_last_six_blocks() -> None:
    with torch.device("meta"):
        model = AIM(AIMConfig(preset="0.6B", head_depth=None))
    assert model.layers(None) == [18, 19, 20, 21, 22, 23]


@pytest.mark.parametrize("layer", [3, -4, [0, 3], [], "last4", "last0", "best", "last"])
def test_layers_that_are_not_there(layer: object) -> None:
    with pytest.raises(
        ValueError, match=r"model of 3 blocks; give numbers from -3 to 2, 'last1' to 'last3', or 'norm'"
    ):
        make_aim().features(pictures(), layer=layer)


def test_other_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="pool is 'max'; use 'mean'"):
        make_aim().features(pictures(), pool="max")


@torch.no_grad()
def test_sizes() -> None:
    """Sine-cosine positions take any whole patches, learned ones their own size, pre-training its own too."""
    model, wide = make_aim(), torch.rand(1, 3, 4, 10, dtype=torch.float64)
    assert model.features(wide).shape == (1, 10, 16)
    patch = model.embed(wide) - model.patch_embed(wide)
    assert patch[0, 0].allclose(model.positions[0])  # the first patch stands where it always does
    assert patch[0, 5].allclose(model.positions[SIDE])  # and so does the first of the second row
    with pytest.raises(ValueError, match="whole patches of 2 pixels"):
        model.features(torch.rand(1, 3, 8, 9))
    with pytest.raises(ValueError, match=r"pre-trained on images \(B, 3, 8, 8\)"):
        model.predict(wide, torch.ones(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="learned positions fit images of 8x8 pixels, not 4x10"):
        make_aim(positions="learned").features(wide)
    assert "positions" in dict(make_aim(positions="learned").named_parameters())


@torch.no_grad()
def test_imagenet_pixels() -> None:
    """The official weights see (x - mean) / std of pixels in [0, 1]."""
    images = pictures()
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = ((images + 1) / 2 - mean) / std
    torch.testing.assert_close(
        make_aim(pixels="imagenet").features(images), make_aim().features(seen), rtol=0, atol=1e-6
    )


def test_without_a_head_there_is_no_pre_training() -> None:
    with pytest.raises(ValueError, match="no pixel head; set head_depth"):
        make_aim(head_depth=None).loss(pictures(), noise=NoiseSource(0, torch.arange(3)))


SIZES = {  # width, blocks, hidden width of the MLP
    "0.6B": (1536, 24, 6144),
    "1B": (2048, 24, 8192),
    "3B": (3072, 24, 12288),
    "7B": (4096, 32, 16384),
    "v2-large": (1024, 24, 2816),
    "v2-huge": (1536, 24, 4096),
    "v2-1B": (2048, 24, 5632),
    "v2-3B": (3072, 24, 8192),
}


@pytest.mark.parametrize("preset", SIZES)
def test_published_presets(preset: str) -> None:
    config = AIMConfig(preset=preset)
    trunk = config.transformer()
    assert (trunk.width, trunk.depth, round(trunk.width * trunk.mlp_ratio)) == SIZES[preset]
    assert (config.head_depth, config.head_width, config.pixels, config.num_tokens) == (12, 2048, "imagenet", 256)
    second = preset.startswith("v2")
    assert (trunk.norm, trunk.norm_eps) == (("rmsnorm", 1e-5) if second else ("layernorm", 1e-6))
    assert (trunk.activation, trunk.bias, trunk.qkv_bias) == ("swiglu" if second else "gelu", False, "none")
    assert config.positions == ("learned" if second else "sincos")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "0.5B"}, "unknown preset '0.5B'; did you mean '0.6B'"),
        ({"patch_size": 3}, "patch_size 3 must divide image_size 8"),
        ({"patch_size": 8}, "pre-training needs two patches or more"),
        ({"num_heads": 3}, "width 16 must be a multiple of 4 and of num_heads 3"),
        ({"feature_layers": [3]}, "feature_layers has 3, but depth is 3"),
        ({"attention_backend": "fast"}, "unknown attention backend"),
    ],
)
def test_configs_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_aim(**changes)


@torch.no_grad()
def test_gradient_checkpointing_and_flex_change_nothing() -> None:
    images = pictures().float()
    expected = make_aim().float().loss(images, noise=NoiseSource(0, torch.arange(3))).sum
    for changes in ({"gradient_checkpointing": True}, {"attention_backend": "flex"}):
        model = make_aim(**changes).float().train()
        found = model.loss(images, noise=NoiseSource(0, torch.arange(3))).sum
        torch.testing.assert_close(found, expected)


def test_targets_ignore_brightness_and_contrast() -> None:
    model, images = make_aim(), pictures()
    target, _, _ = model._targets(images)
    torch.testing.assert_close(model._targets(0.5 * images - 0.3)[0], target, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target.mean(-1), torch.zeros(3, N, dtype=torch.float64))
    assert F.mse_loss(target, torch.zeros_like(target)).item() == pytest.approx(11 / 12, rel=1e-4)  # unbiased variance
