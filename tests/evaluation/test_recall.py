"""Precision and recall have their closed forms on sets whose regions are known."""

import pytest
import torch
from torch import Tensor

from genaim.evaluation import recall
from genaim.evaluation.recall import neighbour_radii, precision_recall


def gaussian(count: int, seed: int, dim: int = 8) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_identical_sets_cover_each_other() -> None:
    features = gaussian(200, 0)
    assert precision_recall(features, features) == (1.0, 1.0)


def test_far_sets_share_nothing() -> None:
    assert precision_recall(gaussian(200, 0), gaussian(200, 1) + 1000) == (0.0, 0.0)


def test_equal_distributions_score_high_in_both() -> None:
    found = precision_recall(gaussian(500, 0), gaussian(500, 1))
    assert found.precision > 0.7
    assert found.recall > 0.7


def test_a_collapsed_set_is_precise_but_recalls_little() -> None:
    real = torch.cat([gaussian(250, 0) - 10, gaussian(250, 1) + 10])  # two modes
    found = precision_recall(real, gaussian(500, 2) - 10)  # one of them
    assert found.precision > 0.7
    assert found.recall <= 0.5
    one_picture = real[:1].expand(500, -1)
    assert precision_recall(real, one_picture) == (1.0, 1 / 500)  # balls without extent hold their own point only


def test_swapping_the_sets_swaps_the_figures() -> None:
    a, b = gaussian(100, 0), gaussian(80, 1) * 0.5
    there, back = precision_recall(a, b), precision_recall(b, a)
    assert (there.precision, there.recall) == (back.recall, back.precision)


def test_radius_is_the_distance_of_the_kth_other_member() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [6.0]])
    assert neighbour_radii(line, 1).tolist() == [1.0, 1.0, 2.0, 3.0]
    assert neighbour_radii(line, 3).tolist() == [6.0, 5.0, 3.0, 6.0]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = gaussian(100, 0), gaussian(90, 1)
    whole = precision_recall(a, b)
    monkeypatch.setattr(recall, "CHUNK", 7)
    assert precision_recall(a, b) == whole


@pytest.mark.parametrize(
    ("real", "generated", "k", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), 3, "needs more than 3 images"),
        (torch.zeros(9, 2), torch.zeros(9, 2), 0, "k = 0"),
        (torch.zeros(9, 2), torch.zeros(9, 3), 3, "must be"),
    ],
)
def test_bad_sets_are_refused(real: Tensor, generated: Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(real, generated, k)
