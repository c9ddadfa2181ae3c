"""Metrics of enlarged images: by hand, by scikit-image, and bicubic on Set5 as it is published."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.judge_upscale import bicubic, judged, set5, table, with_reductions
from genaim.data.transforms import resize_images
from genaim.evaluation.upscaling import consistency_error, luma, luma_psnr, luma_ssim


def noise(seed: int, side: int = 24) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_luma_spans_16_to_235() -> None:
    ends = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert luma(ends).flatten().tolist() == pytest.approx([16, 235], abs=1e-3)
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1)
    assert luma(red).item() == pytest.approx(81.481, abs=1e-3)


def test_psnr_is_of_the_luma_inside_the_border() -> None:
    images = torch.zeros(1, 3, 12, 12)
    others = images.clone()
    others[..., 4:-4, 4:-4] += 0.1  # a luma of 10.95 more
    others[..., 0, :] = 1
    assert luma_psnr(images, others, 4).item() == pytest.approx(20 * math.log10(255 / 10.95), abs=1e-3)
    assert luma_psnr(images, others, 0).item() < 20
    assert luma_psnr(images, images, 4).item() == pytest.approx(100)


def test_ssim_is_that_of_another_library() -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity

    first, second = noise(0), 0.7 * noise(0) + 0.3 * noise(1)
    found = luma_ssim(first, second, 3)
    for row in range(2):
        a, b = (luma(x)[row, 0, 3:-3, 3:-3].double().numpy() for x in (first, second))
        expected = structural_similarity(
            a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert found[row].item() == pytest.approx(expected, abs=2e-3)
    assert luma_ssim(first, first, 3).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match=r"SSIM needs 11x11 pixels inside the border, not \(10, 10\)"):
        luma_ssim(first, second, 7)


def test_consistency_is_in_levels() -> None:
    images = noise(0)
    low_res = resize_images(images, (6, 6))
    assert consistency_error(images, low_res).max() < 1e-4
    assert consistency_error(images, low_res + 6 / 255).mean().item() == pytest.approx(3, abs=1e-3)


def test_the_table_has_a_row_for_every_method() -> None:
    test = with_reductions("noise", list(noise(0, 32)), 2)
    rows = [judged(test, "bicubic", bicubic(test)), judged(test, "consistent", bicubic(test, consistent=True))]
    assert rows[0]["beyond 1 level"] > 0 == rows[1]["beyond 1 level"] and rows[1]["largest error"] <= 1
    assert rows[1]["psnr"] > rows[0]["psnr"]
    lines = table(rows).splitlines()
    assert len(lines) == 4 and lines[3].startswith("| noise | consistent | ")


def test_bicubic_on_set5_is_the_published_row(data_root: Path) -> None:
    test = set5(data_root, 4)
    row = judged(test, "bicubic", bicubic(test))
    assert row["psnr"] == pytest.approx(28.43, abs=0.02) and row["ssim"] == pytest.approx(0.811, abs=0.003)
    assert np.prod(test.pictures[0].shape[1:]) == 512 * 512
