"""Nearest neighbours, repetitions and reconstruction figures."""

import math

import pytest
import torch
from torch import Tensor

from genaim.data import tensor_to_pil
from genaim.evaluation.neighbours import equal_pairs, nearest_neighbours
from genaim.evaluation.reconstruction import bicubic_round_trip, psnr, reconstruction_psnr
from genaim.tokenizers import Tokenizer


def noise(count: int, seed: int, side: int = 8) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_nearest_neighbour_of_a_training_image_is_itself() -> None:
    train = noise(50, 0)
    found = nearest_neighbours(train[[7, 31]], train.split(16), k=3)
    assert torch.equal(found.images[:, 0], train[[7, 31]])
    assert (found.distances[:, 0] == 0).all()
    assert (found.distances.diff(dim=1) >= 0).all()


def test_neighbours_are_those_of_a_plain_search() -> None:
    train, images = noise(40, 0), noise(5, 1)
    levels = ((images[:, None] - train) * 127.5).square().flatten(2).mean(2).sqrt()  # (5, 40)
    expected, index = levels.sort(dim=1)
    found = nearest_neighbours(images, train.split(7), k=4)
    torch.testing.assert_close(found.distances, expected[:, :4], rtol=1e-5, atol=1e-4)
    assert torch.equal(found.images, train[index[:, :4]])


def test_mirror_images_count_where_asked() -> None:
    train = noise(20, 0)
    images = train[3:4].flip(-1)
    assert nearest_neighbours(images, [train], k=1).distances > 10
    found = nearest_neighbours(images, [train], k=1, mirrored=True)
    assert found.distances == 0
    assert torch.equal(found.images[:, 0], images)


def test_too_few_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="2 candidates for 3"):
        nearest_neighbours(noise(1, 0), [noise(2, 1)], k=3)


def test_equal_pairs_counts_pairs_of_equal_pixels() -> None:
    images = noise(6, 0)
    assert equal_pairs(tensor_to_pil(images)) == 0
    images[4] = images[1]
    assert equal_pairs(tensor_to_pil(images)) == 1
    images[5] = images[1] + 1e-5  # the same 8-bit pixels
    assert equal_pairs(tensor_to_pil(images)) == 3


def test_psnr_of_a_constant_error() -> None:
    images = torch.zeros(2, 3, 8, 8)
    others = images + torch.tensor([0.2, 0.02])[:, None, None, None]  # a tenth and a hundredth of the range
    torch.testing.assert_close(psnr(images, others), torch.tensor([20.0, 40.0]))
    assert psnr(images, images).tolist() == [100.0, 100.0]


def test_bicubic_keeps_smooth_images_and_loses_detail() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    checks = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).mul(2.0).sub(1).expand(1, 3, 64, 64)
    assert psnr(ramp, bicubic_round_trip(ramp, 16)) > 35
    assert psnr(checks, bicubic_round_trip(checks, 16)) == pytest.approx(10 * math.log10(4), abs=0.1)  # all grey


class Darker(Tokenizer):
    """Loses a tenth of the range."""

    grid = (8, 8)

    def encode(self, images: Tensor, *, noise: object = None) -> Tensor:
        return images

    def decode(self, tokens: Tensor) -> Tensor:
        return tokens - 0.2

    def token_mask(self, keep: Tensor, grow: int = 0) -> Tensor:
        raise NotImplementedError


def test_reconstruction_psnr_is_a_mean_over_images() -> None:
    images, done = torch.zeros(5, 3, 8, 8), []
    assert reconstruction_psnr(Darker(), images.split(2), done.append) == pytest.approx(20.0, abs=1e-4)
    assert done == [2, 4, 5]
    with pytest.raises(ValueError, match="no images"):
        reconstruction_psnr(Darker(), [])
