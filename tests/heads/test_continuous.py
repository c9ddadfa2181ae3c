"""Gaussian and mixture heads: densities that sum to one, draws that follow them, guidance by its definition."""

import math

import pytest
import torch
import torch.distributions as D
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.heads import GaussianHead, GaussianHeadConfig, MixtureHead, MixtureHeadConfig, SamplingOptions, TokenSpec
from genaim.heads.mixture import discretized_logistic_log_prob

WIDTH = 8
PIXELS = TokenSpec(None, 2, 256)
LATENTS = TokenSpec(None, 2, None)


def noise(rows: int, seed: int = 0) -> NoiseSource:
    return NoiseSource(seed, torch.arange(rows))


def features(rows: int, tokens: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def mixture(spec: TokenSpec, **changes: object) -> MixtureHead:
    torch.manual_seed(0)
    head = MixtureHead(MixtureHeadConfig.model_validate({"components": 3, **changes}).fitted(WIDTH, spec)).double()
    torch.nn.init.normal_(head.mlp.out.weight, std=0.3)
    return head.eval()


def all_pixels() -> Tensor:
    """Every token of two 8-bit channels, (65536, 2)."""
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    return torch.cartesian_prod(levels, levels)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_probabilities_of_all_pixels_sum_to_one(coupled: bool, narrow: bool) -> None:
    head = mixture(PIXELS, density="discretized_logistic", coupled=coupled)
    if narrow:
        head.mlp.out.bias.data[head.sizes[0] + head.sizes[1] :][: head.sizes[2]] = -7.0
    with torch.no_grad():
        x = features(1)[0].double()
        total = head.log_prob(x.expand(65536, -1), all_pixels()).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-9)


def test_discretised_logistic_is_the_mass_of_its_bin() -> None:
    """Against the difference of sigmoids in float64, where that does not cancel."""
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0], dtype=torch.float64)
    x = ((x + 1) * 127.5).round() / 127.5 - 1
    mean, log_scale = torch.tensor(0.1, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    upper = torch.sigmoid((x + 1 / 255 - mean) / log_scale.exp())
    lower = torch.sigmoid((x - 1 / 255 - mean) / log_scale.exp())
    mass = torch.where(x == -1, upper, torch.where(x == 1, 1 - lower, upper - lower))
    torch.testing.assert_close(discretized_logistic_log_prob(x, mean, log_scale, 256), mass.log())


def test_discretised_logistic_is_finite_far_from_its_mean() -> None:
    x = torch.tensor([-1.0, 1 / 255, 1.0], requires_grad=True)
    mean = torch.tensor(5.0, requires_grad=True)
    value = discretized_logistic_log_prob(x, mean, torch.tensor(-7.0), 256).sum()
    value.backward()
    assert value.isfinite() and mean.grad is not None and mean.grad.isfinite()


def test_gaussian_mixture_is_that_of_torch() -> None:
    head = mixture(LATENTS)
    x = features(4, 3).double()
    targets = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1)).double()
    m = head.mixture(x)
    parts = D.Independent(D.Normal(m.means, m.log_scales.exp()), 1)
    reference = D.MixtureSameFamily(D.Categorical(logits=m.logits), parts).log_prob(targets)
    torch.testing.assert_close(head.log_prob(x, targets), reference)
    torch.testing.assert_close(head.loss(x, targets), -reference)


def test_coupled_gaussian_is_the_chain_of_its_channels() -> None:
    head = mixture(LATENTS, coupled=True, components=1)
    x, target = features(5).double(), torch.randn(5, 1, 2, dtype=torch.float64)
    m = head.mixture(x)
    first = D.Normal(m.means[..., 0, 0], m.log_scales[..., 0, 0].exp()).log_prob(target[..., 0])
    moved = m.means[..., 0, 1] + m.coupling[..., 0, 1, 0] * target[..., 0]
    second = D.Normal(moved, m.log_scales[..., 0, 1].exp()).log_prob(target[..., 1])
    torch.testing.assert_close(head.log_prob(x, target), first + second)


@pytest.mark.parametrize("coupled", [False, True])
def test_draws_have_the_entropy_of_the_density(coupled: bool) -> None:
    """The mean of -log p over draws from p, against the same over all pixels weighted by p."""
    head = mixture(PIXELS, density="discretized_logistic", coupled=coupled)
    rows = 4000
    with torch.no_grad():
        x = features(1).double()
        drawn = head.sample(x.expand(rows, -1, -1), SamplingOptions(), noise=noise(rows))
        found = -head.log_prob(x.expand(rows, -1, -1), drawn)
        log_p = head.log_prob(x[0].expand(65536, -1), all_pixels())
        entropy = -(log_p.exp() * log_p).sum()
    error = found.std() / math.sqrt(rows)
    assert abs(found.mean() - entropy) < 4 * error
    levels = (drawn + 1) * 127.5
    torch.testing.assert_close(levels, levels.round())


def test_guided_draws_follow_the_guided_density() -> None:
    """Resampled candidates approach p_uncond (p_cond / p_uncond)^scale, known in closed form for one Gaussian."""
    head = mixture(LATENTS, components=1, guidance_candidates=512)
    rows, scale = 3000, 2.0
    with torch.no_grad():
        head.mlp.out.weight.zero_()
        head.mlp.out.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0]))  # logit, means, log scales
        cond, uncond = torch.zeros(rows, 1, WIDTH).double(), torch.zeros(rows, 1, WIDTH).double()
        uncond[..., 0] = 1
        head.mlp.out.weight[1, 0] = 0.5  # the null class has its first mean at 0.5
        drawn = head.sample(
            cond, SamplingOptions(), uncond_features=uncond, guidance_scale=scale, noise=noise(rows)
        ).squeeze(1)
    # unit Gaussians at 0 and 0.5: the guided one is at 0.5 + 2 (0 - 0.5) = -0.5, of unit variance
    assert drawn[:, 0].mean().item() == pytest.approx(-0.5, abs=0.08)
    assert drawn[:, 0].std().item() == pytest.approx(1, abs=0.06)
    assert drawn[:, 1].mean().item() == pytest.approx(0, abs=0.08)


def test_unit_gaussian_is_regression() -> None:
    torch.manual_seed(0)
    head = GaussianHead(GaussianHeadConfig(variance="unit", depth=2, hidden=16).fitted(WIDTH, LATENTS))
    x, target = features(4, 3), torch.randn(4, 3, 2)
    error = (head.mlp(x) - target).square().sum(-1)
    torch.testing.assert_close(head.loss(x, target), 0.5 * error + math.log(2 * math.pi))


def test_guidance_moves_the_mean_of_a_unit_gaussian() -> None:
    torch.manual_seed(0)
    head = GaussianHead(GaussianHeadConfig(variance="unit").fitted(WIDTH, LATENTS))
    cond, uncond = features(4), features(4, seed=1)
    options = SamplingOptions(temperature=0.0)
    got = head.sample(cond, options, uncond_features=uncond, guidance_scale=3.0, noise=noise(4))
    mean, null = head.mlp(cond), head.mlp(uncond)
    torch.testing.assert_close(got, null + 3 * (mean - null))


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_codes_need_the_categorical_head(kind: str) -> None:
    config = {"gaussian": GaussianHeadConfig, "mixture": MixtureHeadConfig}[kind]()
    with pytest.raises(ValueError, match=f"head '{kind}' predicts continuous tokens.*use the head 'categorical'"):
        config.fitted(WIDTH, TokenSpec(16, None, None))


def test_an_option_that_the_head_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="the head 'mixture' takes no top-k; leave it out"):
        mixture(LATENTS).sample(features(1).double(), SamplingOptions(top_k=3), noise=noise(1))


def test_guidance_of_a_mixture_needs_a_temperature() -> None:
    head, x = mixture(LATENTS), features(1).double()
    with pytest.raises(ValueError, match="at temperature 0 all are equal"):
        head.sample(x, SamplingOptions(temperature=0.0), uncond_features=x, guidance_scale=2.0, noise=noise(1))


@pytest.mark.parametrize("config", [GaussianHeadConfig(depth=4, hidden=64), MixtureHeadConfig(depth=4, hidden=64)])
def test_residual_blocks_start_as_in_aim(config: GaussianHeadConfig | MixtureHeadConfig) -> None:
    """Outputs of the blocks are divided by sqrt(depth), so that the sum over blocks does not grow with it."""
    torch.manual_seed(0)
    head = {"gaussian": GaussianHead, "mixture": MixtureHead}[config.kind](config.fitted(WIDTH, LATENTS))
    for mlp in head.mlp.mlps:
        assert mlp.fc1.weight.std().item() == pytest.approx((1 / 3 / 64) ** 0.5, rel=0.05)
        assert mlp.fc2.weight.std().item() == pytest.approx((1 / 3 / 256) ** 0.5 / 2, rel=0.05)
