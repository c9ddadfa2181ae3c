"""The diffusion head: closed forms of its process, samplers that agree, options it refuses, half precision."""

import pytest
import torch
from torch import Tensor

from genaim.core.noise import NoiseSource
from genaim.heads import DiffusionHead, DiffusionHeadConfig, SamplingOptions, TokenSpec
from genaim.heads.diffusion import Predict, chunks, heun
from genaim.heads.schedule import Diffusion, Gaussian, gaussian_divergence

WIDTH, CHANNELS = 8, 3


def make(objective: str = "epsilon", channels: int = CHANNELS) -> DiffusionHead:
    torch.manual_seed(0)
    config = DiffusionHeadConfig.model_validate(
        {"objective": objective, "depth": 1, "hidden": 16, "draws": 2, "diffusion_steps": 5}
    )
    head = DiffusionHead(config.fitted(WIDTH, TokenSpec(None, channels, None)))
    for parameter in head.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return head.eval()


def features(rows: int = 4, tokens: int = 3) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(0))


def noise(rows: int = 4) -> NoiseSource:
    return NoiseSource(0, torch.arange(rows))


class Gaussian1D:
    """The noise prediction that is exact for tokens of N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.variance = mean, std**2
        self.process = Diffusion()

    def at_times(self, times: Tensor) -> Predict:
        """What `DiffusionHead.predictor` makes of timesteps."""
        return lambda x, number: self(x.double(), times[number].round().long())

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        signal = self.process.sqrt_cumprod.double()[time]
        scale = self.process.sqrt_one_minus_cumprod.double()[time]
        epsilon = scale * (x - signal * self.mean) / (signal**2 * self.variance + scale**2)
        return torch.cat([epsilon, torch.full_like(x, -1.0)], dim=-1)  # the lower bound of the variance


def test_ancestral_sampling_reaches_a_known_gaussian() -> None:
    rows = 4000
    source = NoiseSource(0, torch.arange(rows))
    x = source.normal(1, 1).double()
    predict = Gaussian1D(0.3, 0.5).at_times(Diffusion(200).timesteps.flip(0))
    *_, last = make().trajectory(predict, x, 200, 1.0, source)
    assert last.mean().item() == pytest.approx(0.3, abs=0.03)
    assert last.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "euler", "UniPCMultistepScheduler"])
def test_schedulers_of_diffusers_reach_it_too(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, rows, exact = make(channels=1), 2000, Gaussian1D(0.3, 0.5)
    monkeypatch.setattr(head, "predictor", lambda *given: exact.at_times(given[-1]))
    options = SamplingOptions(scheduler=scheduler, diffusion_steps=50)
    drawn = head.sample(torch.zeros(rows, 1, WIDTH), options, noise=NoiseSource(0, torch.arange(rows)))
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.05)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.05)


def test_heun_solves_a_linear_equation() -> None:
    """dx/dt = -x from 1 is exp(-1) at t = 1."""
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    assert heun(lambda x, number: -x, x, torch.linspace(0, 1, 101)).item() == pytest.approx(torch.e**-1, abs=1e-4)


def test_flow_takes_a_straight_path_to_a_point() -> None:
    """The exact velocity towards a single token is (token - x) / (1 - t): every number of steps ends there."""
    token = torch.tensor([[[0.5, -2.0]]])
    start = torch.randn(1, 1, 2)
    for steps in (1, 3, 10):
        times = torch.linspace(0, 1, steps + 1)
        end = heun(lambda x, number: (token - x) / (1 - times[number]), start, times)  # noqa: B023, called at once
        torch.testing.assert_close(end, token)


def test_respacing_keeps_the_noise_levels() -> None:
    full, few = Diffusion(), Diffusion(10)
    assert few.timesteps.tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    torch.testing.assert_close(few.sqrt_cumprod, full.sqrt_cumprod[few.timesteps])
    assert Diffusion(21).timesteps.tolist()[9:12] == [450, 499, 549]  # 499.5, which a running sum rounds down
    assert Diffusion(1000).timesteps.equal(torch.arange(1000)) and Diffusion(2).timesteps.tolist() == [0, 999]


def test_divergence_of_gaussians_is_the_closed_form() -> None:
    first, second = torch.distributions.Normal(0.2, 0.5), torch.distributions.Normal(-0.1, 0.8)
    ours = gaussian_divergence(*(Gaussian(d.mean, 2 * d.stddev.log()) for d in (first, second)))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(first, second))


def test_the_bound_trains_the_variance_alone() -> None:
    head = make()
    index = torch.tensor([[0, 500, 999]])
    start, added = torch.randn(1, 3, CHANNELS), torch.randn(1, 3, CHANNELS)
    condition = head.net.condition_embed(features(1))
    noisy = head.diffusion.add_noise(start, index, added)
    epsilon, fraction = (part.detach().requires_grad_() for part in head.net(noisy, index, condition).chunk(2, dim=-1))
    reverse = head.diffusion.reverse(epsilon.detach(), fraction, noisy, index)
    head.diffusion.variational_bound(start, noisy, index, reverse).sum().backward()
    assert epsilon.grad is None and fraction.grad.abs().max() > 0


def test_guidance_of_one_is_off() -> None:
    head, x = make(), features()
    plain = head.sample(x, SamplingOptions(), noise=noise())
    guided = head.sample(x, SamplingOptions(), uncond_features=features() + 1, guidance_scale=1.0, noise=noise())
    torch.testing.assert_close(plain, guided, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("objective", ["epsilon", "flow"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(objective: str, dtype: torch.dtype) -> None:
    """The published code yields NaN there; features of large magnitude and every timestep are tried."""
    head = make(objective)
    x, targets = 30 * features(64, 16), 4 * torch.randn(64, 16, CHANNELS)
    with torch.autocast("cpu", dtype):
        loss = head.loss(x, targets, noise=noise(64))
        loss.sum().backward()
        drawn = head.sample(x, SamplingOptions(), uncond_features=-x, guidance_scale=3.0, noise=noise(64))
    assert loss.dtype == drawn.dtype == torch.float32
    assert loss.isfinite().all() and drawn.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_schedulers_are_refused_where_they_do_not_fit() -> None:
    x = features()
    with pytest.raises(ValueError, match="unknown scheduler 'dimm'; did you mean 'ddim'"):
        make().sample(x, SamplingOptions(scheduler="dimm"), noise=noise())
    with pytest.raises(ValueError, match="draws noise that cannot belong to an image"):
        make().sample(x, SamplingOptions(scheduler="EulerAncestralDiscreteScheduler"), noise=noise())
    with pytest.raises(ValueError, match="adds no noise that temperature could scale"):
        make().sample(x, SamplingOptions(scheduler="ddim", temperature=0.9), noise=noise())
    with pytest.raises(ValueError, match="this one predicts a flow"):
        make("flow").sample(x, SamplingOptions(scheduler="ddim"), noise=noise())
    with pytest.raises(ValueError, match="has no exact density"):
        make().log_prob(x, torch.zeros(4, 3, CHANNELS))


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler"])
def test_one_step_of_noise_prediction_would_return_noise(scheduler: str | None) -> None:
    with pytest.raises(ValueError, match="must be 2 to 1000, not 1"):
        make().sample(features(), SamplingOptions(diffusion_steps=1, scheduler=scheduler), noise=noise())
    assert make("flow").sample(features(), SamplingOptions(diffusion_steps=1), noise=noise()).isfinite().all()


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_beyond_the_timesteps_are_refused_at_once(steps: int) -> None:
    for objective in ("epsilon", "flow"):
        with pytest.raises(ValueError, match="diffusion_steps"):
            DiffusionHeadConfig(objective=objective, diffusion_steps=steps)
    with pytest.raises(ValueError, match=f"diffusion_steps must be in 1 to 1000, not {steps}"):
        SamplingOptions(diffusion_steps=steps)


def test_a_solver_that_diverges_is_named() -> None:
    """dpmsolver++ divides by a vanishing step of its logarithms near 1000 steps."""
    with pytest.raises(ValueError, match=r"scheduler 'dpmsolver\+\+' gives no finite tokens in 1000 steps"):
        make().sample(features(1, 1), SamplingOptions(scheduler="dpmsolver++", diffusion_steps=1000), noise=noise(1))


@pytest.mark.parametrize("name", ["CogVideoXDPMScheduler", "RePaintScheduler", "DDIMInverseScheduler"])
def test_an_odd_scheduler_is_refused_by_name(name: str) -> None:
    """Their own errors named nothing, and a TypeError was told as a bug of ours."""
    with pytest.raises(ValueError, match=f"scheduler '{name}' of diffusers cannot drive this head .*; use one of ddim"):
        make().sample(features(), SamplingOptions(scheduler=name), noise=noise())


def test_a_name_that_is_refused_is_not_offered() -> None:
    """Some classes of diffusers are no schedulers of its kind, or need a library that is not there."""
    import diffusers

    with pytest.raises(ValueError, match="unknown scheduler 'KarrasVeScheduler'") as error:
        make().sample(features(), SamplingOptions(scheduler="KarrasVeScheduler"), noise=noise())
    offered = str(error.value).split("Allowed: ")[1].rstrip(".").split(", ")
    assert {"own", "ddim", "DDIMScheduler"} < set(offered)
    classes = [getattr(diffusers, name) for name in offered if name.endswith("Scheduler")]
    assert all(issubclass(scheduler, diffusers.SchedulerMixin) for scheduler in classes)


@pytest.mark.parametrize("objective", ["epsilon", "flow"])
def test_own_is_the_head_s_sampler(objective: str) -> None:
    head = make(objective)
    plain, own = (head.sample(features(), SamplingOptions(scheduler=name), noise=noise()) for name in (None, "own"))
    assert own.equal(plain)


def test_steps_are_computed_together_with_their_like() -> None:
    exact = [True, False, False, False, True, True]
    assert chunks(exact, 2) == [range(1), *[range(1, 3)] * 2, range(3, 4), *[range(4, 6)] * 2]
    assert chunks([True] * 5, 100) == [range(5)] * 5
    assert chunks([], 3) == []


@pytest.mark.parametrize("steps", [10, 100])
def test_steps_that_do_not_amplify_bear_half_precision(steps: int) -> None:
    """Rounding the exact prediction there is an error below -40 dB, and elsewhere, of few steps, one above."""
    process, start = Diffusion(steps), noise(2000).normal(1, 1).double()
    exact = Gaussian1D(0.3, 0.5).at_times(process.timesteps.flip(0))

    def end(rounded: list[bool]) -> Tensor:
        def predict(x: Tensor, number: int) -> Tensor:
            return exact(x, number).bfloat16().double() if rounded[number] else exact(x, number)

        *_, last = make().trajectory(predict, start, steps, 1.0, noise(2000))
        return last

    def error(rounded: list[bool]) -> float:
        return ((end(rounded) - end([False] * steps)).square().mean() / 0.5**2).item()

    amplifies = process.amplifies[::-1]
    assert error([not a for a in amplifies]) < 1e-4
    assert steps == 100 or error(amplifies) > 1e-4
