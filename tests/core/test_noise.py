"""Noise belongs to the image: keyed, reproducible, well distributed."""

import math
from collections.abc import Callable

import pytest
import torch

from genaim.core import noise
from genaim.core.noise import NoiseSource, gumbel, logistic, step_seed


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_noise_ignores_the_batch(kind: str) -> None:
    """Bit for bit, at any batch size, for sizes that do and do not fill a vector register."""
    for shape in [(1,), (3,), (7, 5), (64, 33)]:
        whole = NoiseSource(3, torch.arange(67))
        single = [NoiseSource(3, torch.tensor([i])) for i in range(67)]
        sevens = [NoiseSource(3, part) for part in torch.arange(67).split(7)]
        for _ in range(2):
            expected = getattr(whole, kind)(*shape)
            assert expected.equal(torch.cat([getattr(n, kind)(*shape) for n in single]))
            assert expected.equal(torch.cat([getattr(n, kind)(*shape) for n in sevens]))


def test_keys_give_different_numbers() -> None:
    def draw(seed: int, index: int, skip: int) -> float:
        return float(NoiseSource(seed, torch.tensor([index]), skip).uniform(1))

    values = {draw(s, i, d) for s in (-1, 0, 1, 2**40) for i in range(50) for d in range(20)}
    assert len(values) > 0.999 * 4 * 50 * 20


def test_uniform_is_open_and_flat() -> None:
    u = NoiseSource(0, torch.arange(100)).uniform(10_000).double()
    assert u.min() > 0 and u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 1e6))
    counts = torch.histc(u, 64)
    chi_squared = ((counts - 1e6 / 64).square() / (1e6 / 64)).sum().item()
    assert chi_squared < 63 + 5 * math.sqrt(2 * 63)
    neighbours = torch.corrcoef(torch.stack([u[:, :-1].flatten(), u[:, 1:].flatten()]))[0, 1]
    rows = torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]
    assert max(abs(neighbours), abs(rows)) < 5e-3


def test_normal_moments() -> None:
    z = NoiseSource(1, torch.arange(100)).normal(10_000).double()
    moments = [z.pow(k).mean().item() for k in range(1, 5)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.03)


def test_draws_advance_and_repeat() -> None:
    source = NoiseSource(5, torch.tensor([2]))
    first, second = source.uniform(4), source.uniform(4)
    assert not first.equal(second)
    assert NoiseSource(5, torch.tensor([2]), draw=1).uniform(4).equal(second)


def test_steps_have_their_own_seeds() -> None:
    assert len({step_seed(seed, step) for seed in range(30) for step in range(1000)}) == 30_000


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    """A row's tokens keep their noise when its batch mates predict more."""
    for kind in ("normal", "uniform"):
        long, short = (getattr(NoiseSource(3, torch.arange(2)), kind)(n, 2) for n in (5, 3))
        assert long[:, :3].equal(short)


def test_logistic_noise_is_the_quantile_of_its_uniform() -> None:
    uniform = torch.tensor([2**-24, 0.2, 0.5, 1 - 2**-24])
    torch.testing.assert_close(torch.sigmoid(logistic(uniform).double()), uniform.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [gumbel, logistic])
def test_float64_is_computed_where_the_device_has_it(
    shape: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPS has none: what is made of its uniform numbers comes from the CPU, and goes back in float32."""
    moved: list[torch.Tensor] = []
    monkeypatch.setattr(noise, "exact", lambda tensor: moved.append(tensor) or tensor)
    assert shape(torch.tensor([0.5])).dtype == torch.float32
    assert len(moved) == 1
