"""The tokenizer's objective: adaptive weight, hinge loss, perceptual term with and without its weights."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from genaim.tokenizers import MultiScaleVQ, MultiScaleVQConfig
from genaim.training.tokenizer_loss import (
    Discriminator,
    TokenizerLossConfig,
    adaptive_weight,
    discriminator_loss,
    load_perceptual,
)
from genaim.training.tokenizer_tasks import VQTask, perplexity
from tests.tiny import merge
from tests.training.runs import TOKENIZER, make_images, recipe, start


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer = nn.Parameter(torch.tensor([3.0, 4.0]))
    reconstruction, adversarial = 10 * layer.sum(), layer.square().sum()
    expected = (10 * 2**0.5) / (2 * 5 + 1e-4)
    assert adaptive_weight(reconstruction, adversarial, layer).item() == pytest.approx(expected)
    assert adaptive_weight(reconstruction, 0 * adversarial, layer).item() == pytest.approx(1e4)


def test_hinge_loss() -> None:
    real, fake = torch.tensor([[2.0, 0.0]]), torch.tensor([[-3.0, 1.0]])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 1.0))


def test_discriminator_rows_are_independent() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(8)
    images = torch.randn(3, 3, 32, 32)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(discriminator(images), alone)


def test_perplexity_counts_codes_as_if_equally_used() -> None:
    assert perplexity(torch.tensor([5.0, 5, 5, 0])) == pytest.approx(3)
    assert perplexity(torch.tensor([9.0, 0, 0])) == pytest.approx(1)


@pytest.mark.parametrize("required", [True, False])
def test_missing_perceptual_weights(required: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run says so, and goes on only if the recipe allows it."""
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)  # importing it fails
    make_images(tmp_path / "images", count=8)
    config = recipe(tmp_path, "tokenizer", steps=1, loss={"perceptual": 1.0, "perceptual_required": required})
    if required:
        with pytest.raises(ValueError, match=r"cannot be loaded.*perceptual_required=false") as error:
            start(config)
        assert "\n" not in str(error.value)
    else:
        _, progress = start(config)
        assert any("WARNING" in line and "goes on without it" in line for line in progress.lines)


def test_perceptual_loss_is_differentiable_and_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real LPIPS network of torchmetrics, with random features instead of the downloaded ones."""
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    vgg16 = models.vgg16

    def small(**arguments: object) -> nn.Module:
        return vgg16(weights=None, init_weights=False)

    monkeypatch.setattr(models, "vgg16", small)
    network, warning = load_perceptual(required=True)
    assert network is not None
    assert warning is None
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    moved = (images + torch.tensor([0.0, 0.5])[:, None, None, None]).clamp(-1, 1).requires_grad_()
    distance = network(moved, images).flatten()
    assert distance[0].item() == pytest.approx(0, abs=1e-6)
    assert distance[1] > 0
    (gradient,) = torch.autograd.grad(distance.sum(), moved)
    assert gradient[1].abs().max() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_a_collapsed_codebook_warns() -> None:
    task = VQTask(MultiScaleVQ(MultiScaleVQConfig.model_validate(TOKENIZER)), TokenizerLossConfig())
    one = torch.ones(())
    collapsed = torch.zeros(3, 16)
    collapsed[:, 5] = 100
    figures, warnings = task.summarize({"codes": (collapsed, one), "loss": (one, one)})
    assert figures["perplexity_all"] == pytest.approx(1)
    assert figures["usage_scale_2"] == pytest.approx(1 / 16)
    assert len(warnings) == 1
    assert "the codebook has collapsed: perplexity 1.0 of 16 codes" in warnings[0]
    assert "set tokenizer.codebook.revive_below=0.05, or lower optimizer.lr" in warnings[0]
    figures, warnings = task.summarize({"codes": (torch.full((3, 16), 10.0), one), "loss": (one, one)})
    assert figures["perplexity_all"] == pytest.approx(16)
    assert not warnings


def test_a_collapsed_codebook_advised_what_is_set() -> None:
    revived = merge(TOKENIZER, {"codebook": {"revive_below": 0.05}})
    task = VQTask(MultiScaleVQ(MultiScaleVQConfig.model_validate(revived)), TokenizerLossConfig())
    codes = torch.zeros(3, 16)
    codes[:, 5] = 100
    _, (warning,) = task.summarize({"codes": (codes, torch.ones(()))})
    assert "revive_below" not in warning and warning.endswith("; lower optimizer.lr.")
