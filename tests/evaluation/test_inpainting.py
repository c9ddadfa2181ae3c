"""Completions, the fills beside them, and Frechet distances."""

import os
from pathlib import Path

import pytest
import torch

from genaim.config import data_root
from genaim.evaluation.cifar import CifarResNet, load_cifar_resnet
from genaim.evaluation.inpainting import FILLS, best_of, diversity, free_form_holes, hole_psnr

PACKAGE = {"Telea": "cv2", "biharmonic": "skimage"}


def test_holes_have_the_asked_shares_and_belong_to_the_image() -> None:
    keep = free_form_holes(200, 32, seed=1)
    share = 1 - keep.float().mean((1, 2))
    assert share.min() >= 0.099 and share.max() < 0.5
    assert 0.27 < share.mean() < 0.33
    assert free_form_holes(3, 32, seed=1).equal(keep[:3])
    borders = (keep[:, 1:] != keep[:, :-1]).float().mean()
    assert borders < 0.1, "holes are smooth"


def test_psnr_counts_the_hole_alone() -> None:
    images, keep = torch.zeros(2, 3, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
    keep[0, :2], keep[1, :, :4] = False, False
    others = torch.where(keep.unsqueeze(1), 0.9, torch.full((2, 3, 8, 8), 0.2))
    assert hole_psnr(images, others, keep).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_diversity_and_best_of() -> None:
    results = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 0.5, 1.0)])[None]
    assert diversity(results).tolist() == pytest.approx([127.5 * (0.5 + 1.0 + 0.5) / 3])
    assert best_of(torch.full((1, 3, 4, 4), 0.4), results)[0, 0, 0, 0] == 0.5


@pytest.mark.parametrize("name", FILLS)
def test_fills_look_at_what_is_kept_alone(name: str) -> None:
    if name in PACKAGE:
        pytest.importorskip(PACKAGE[name])
    keep = free_form_holes(2, 16)
    images = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).round() / 127.5 - 1
    spoilt = torch.where(keep.unsqueeze(1), images, -1.0)
    torch.testing.assert_close(FILLS[name](images, keep), FILLS[name](spoilt, keep))
    kept = keep.unsqueeze(1).expand_as(images)
    torch.testing.assert_close(FILLS[name](images, keep)[kept], images[kept], rtol=0, atol=1e-6)
    flat = torch.full((2, 3, 16, 16), 0.2)
    torch.testing.assert_close(FILLS[name](flat, keep), flat, rtol=0, atol=0.02)  # Telea rounds to 8 bits along the way


def test_extractor_ignores_batch_size_and_refuses_other_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = CifarResNet().eval()
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.features(images)[1:2], model.features(images[1:2]), rtol=1e-4, atol=1e-5)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="does not hold a CIFAR-10 ResNet-56"):
        load_cifar_resnet(tmp_path / "a.safetensors")


def test_published_weights_recognise_cifar() -> None:
    root = data_root()
    weights = Path(str(root)) / "classifiers" / "cifar10_resnet56.safetensors"
    if root is None or not weights.exists():
        pytest.skip(f"no classifier in GENAIM_DATA ({os.environ.get('GENAIM_DATA', 'not set')})")
    from genaim.data import DataConfig, build_dataset

    source = {"path": str(root / "cifar10"), "format": "parquet", "split": "test", "limit": 200}
    config = DataConfig.model_validate({"train": source, "val": source, "image_size": 32})
    dataset = build_dataset(config, "val")
    samples = [dataset.sample(i, (0,)) for i in range(200)]
    with torch.no_grad():
        found = load_cifar_resnet(weights)(torch.stack([s.image for s in samples])).argmax(1)
    assert (found == torch.tensor([s.label for s in samples])).float().mean() > 0.75  # 83.2% on the whole split
