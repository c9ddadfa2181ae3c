"""The categorical head: guidance, truncation and the distribution it draws from."""

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.heads import CategoricalHead, CategoricalHeadConfig, SamplingOptions
from genaim.heads.base import guide
from genaim.heads.categorical import truncate


@pytest.fixture
def head() -> CategoricalHead:
    torch.manual_seed(0)
    return CategoricalHead(CategoricalHeadConfig(width=8, num_codes=6))


def noise(rows: int, seed: int = 0) -> NoiseSource:
    return NoiseSource(seed, torch.arange(rows))


def frequencies(head: CategoricalHead, features: Tensor, options: SamplingOptions, **guidance: object) -> Tensor:
    rows = 40_000
    guidance = {k: v.expand(rows, 1, -1) if k == "uncond_features" else v for k, v in guidance.items()}
    drawn = head.sample(features.expand(rows, 1, -1), options, noise=noise(rows), **guidance)
    return torch.bincount(drawn.flatten(), minlength=6) / rows


def test_loss_is_minus_log_prob(head: CategoricalHead) -> None:
    features, targets = torch.randn(2, 5, 8), torch.randint(0, 6, (2, 5))
    torch.testing.assert_close(head.loss(features, targets), -head.log_prob(features, targets))
    everything = torch.arange(6).expand(2, 5, 6)
    total = head.log_prob(features.unsqueeze(2).expand(-1, -1, 6, -1), everything).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(2, 5))


def test_draws_follow_the_softmax(head: CategoricalHead) -> None:
    features = torch.randn(1, 1, 8)
    for temperature in (1.0, 0.5):
        expected = (head.logits(features)[0, 0] / temperature).softmax(-1)
        found = frequencies(head, features, SamplingOptions(temperature=temperature))
        assert (found - expected).abs().max() < 4 * (0.25 / 40_000) ** 0.5


def test_guided_draws_follow_the_guided_logits(head: CategoricalHead) -> None:
    cond, uncond = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    expected = (head.logits(uncond) + 2.5 * (head.logits(cond) - head.logits(uncond)))[0, 0].softmax(-1)
    found = frequencies(head, cond, SamplingOptions(), uncond_features=uncond, guidance_scale=2.5)
    assert (found - expected).abs().max() < 4 * (0.25 / 40_000) ** 0.5


def test_guidance_of_one_is_off_bit_for_bit() -> None:
    cond, uncond = torch.randn(3, 4), torch.randn(3, 4)
    assert guide(cond, uncond, 1.0).equal(cond)
    assert guide(cond, uncond, torch.ones(3)).equal(cond)
    assert guide(cond, None, 7.0) is cond
    scales = torch.tensor([0.0, 1.0, 3.0])
    torch.testing.assert_close(guide(cond, uncond, scales), uncond + scales[:, None] * (cond - uncond))


def test_temperature_zero_takes_the_best(head: CategoricalHead) -> None:
    features = torch.randn(4, 3, 8)
    drawn = head.sample(features, SamplingOptions(temperature=0.0), noise=noise(4))
    assert drawn.equal(head.logits(features).argmax(-1))


def test_truncation() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = lambda k, p: truncate(logits, k, p).isfinite().tolist()  # noqa: E731
    assert kept(2, None) == [True, True, False, False]
    assert kept(9, None) == [True] * 4
    assert kept(None, 0.4) == [True, False, False, False]
    assert kept(None, 0.79) == [True, True, False, False]
    assert kept(None, 0.81) == [True, True, True, False]
    assert kept(None, 1.0) == [True] * 4
    assert kept(2, 0.6) == [True, False, False, False]  # 0.5 of 0.8 is 62.5% after top-k
    assert truncate(logits, 3, 0.9)[:3].equal(logits[:3])


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingOptions(**options)


def test_a_head_refuses_options_that_it_lacks() -> None:
    class Greedy(CategoricalHead):
        options = ()

    head = Greedy(CategoricalHeadConfig(width=8, num_codes=6))
    head.check_options(SamplingOptions(temperature=1.0))
    with pytest.raises(ValueError, match="with the head 'categorical' takes no top-k; leave it out"):
        head.check_options(SamplingOptions(top_k=3))
    with pytest.raises(ValueError, match="takes no temperature"):
        head.check_options(SamplingOptions(temperature=0.5))
