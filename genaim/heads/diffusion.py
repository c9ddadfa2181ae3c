"""Diffusion head: a small network denoises every token by itself, given its features.

MAR's diffusion loss (Li et al. 2024, https://arxiv.org/abs/2406.11838, section 3.2; code: github.com/LTH14/mar,
models/diffloss.py). Two objectives: ``epsilon`` is the published one (`schedule`), ``flow`` is flow matching (Lipman et
al. 2023, https://arxiv.org/abs/2210.02747) with times drawn as in Esser et al. 2024 (https://arxiv.org/abs/2403.03206,
section 3.1). The head computes in float32, also under autocast and of bfloat16 weights: the first ancestral step
multiplies errors of the network by several thousand, and the published code yields NaN in half precision. Only a head
that is prepared for sampling in half precision uses it, in the steps that make errors smaller.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genaim.config import nearest, one_line
from genaim.core.inference import ready_linears
from genaim.core.layers import at_least_float32, float32_module, in_float32, modulate
from genaim.core.noise import Noise
from genaim.heads.base import ContinuousHeadConfig, Head, SamplingOptions, guide
from genaim.heads.schedule import NUM_TIMESTEPS, Diffusion, check_steps, cosine_betas, diffusion_of

TIME_CHANNELS = 256
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
"""Short names of schedulers of diffusers."""
OWN = "own"
"""Name of the sampler without diffusers, so that it can be asked for where a model has another default."""
LOSS_UNITS = {
    "epsilon": "mean squared error of the noise plus the variational bound in bits per channel",
    "flow": "mean squared error of the velocity",
}
"""What the loss of each objective is."""


class DiffusionHeadConfig(ContinuousHeadConfig):
    """A token denoiser; the defaults are those of MAR-B."""

    kind: Literal["diffusion"] = "diffusion"
    """Name in the registry of heads."""
    objective: Literal["epsilon", "flow"] = "epsilon"
    """epsilon: the published noise prediction with learned variance; flow: flow matching."""
    depth: int = Field(6, ge=1)
    """Residual blocks."""
    hidden: int = Field(1024, ge=1)
    """Their width."""
    draws: int = Field(4, ge=1)
    """Timesteps and noises of every token in a training step."""
    diffusion_steps: int = Field(100, ge=1, le=NUM_TIMESTEPS)
    """Steps of sampling when none are asked for, at most 1000; for epsilon at least 2."""

    @model_validator(mode="after")
    def _check(self) -> "DiffusionHeadConfig":
        if self.objective == "epsilon":
            check_steps(self.diffusion_steps)
        return self


class DenoiserBlock(nn.Module):
    """Residual MLP with adaptive norm and gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor | tuple[Tensor, ...]) -> Tensor:
        """(..., W) to (..., W); the condition is activated already, or `modulation` of it in three parts."""
        shift, scale, gate = self.modulation(condition).chunk(3, -1) if isinstance(condition, Tensor) else condition
        hidden = self.fc2(F.silu(self.fc1(modulate(self.norm(x), scale, shift))))
        out: Tensor = x + gate * hidden
        return out


class Denoiser(nn.Module):
    """The network of the head: noisy tokens, timesteps and projected features to predictions."""

    def __init__(self, config: DiffusionHeadConfig) -> None:
        super().__init__()
        self.width = width = config.hidden
        outputs = config.channels * (2 if config.objective == "epsilon" else 1)
        self.time_embed = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_embed = nn.Linear(config.width, width)
        self.token_embed = nn.Linear(config.channels, width)
        self.blocks = nn.ModuleList(DenoiserBlock(width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, outputs)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """As published: Xavier, small time embedding, and zeros so that blocks start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.startswith("time_embed") and parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif "modulation" in name or name.startswith("out."):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Predictions for tokens.

        Args:
            x: Noisy tokens, (..., C).
            time: Timesteps on the scale of 0 to 1000, (...) or a scalar.
            condition: `condition_embed` of the features, (..., W).

        Returns:
            (..., 2 C) noise and variance share, or (..., C) velocity.
        """
        return self.denoise(x, self.modulation(time, condition))

    def modulation(self, time: Tensor, condition: Tensor) -> Tensor:
        """All that timesteps and features decide, (..., (3 depth + 2) W): the shifts, scales and gates of every norm.

        More than half of the network's work. It does not depend on the noisy tokens, so the steps of sampling share one
        product with many rows instead of each having one with few, which reads all weights for them.
        """
        activated = F.silu(self.time_embed(time_channels(time).to(condition.dtype)) + condition)
        maps = [*(cast(DenoiserBlock, block).modulation for block in self.blocks), self.norm_modulation]
        return torch.cat([layer(activated) for layer in maps], dim=-1)

    def denoise(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Predictions for noisy tokens (..., C), given their `modulation`; see `forward`."""
        *rows, shift, scale = modulation.unflatten(-1, (-1, self.width)).unbind(-2)
        hidden = at_least_float32(self.token_embed(x))
        for block, *of_block in zip(self.blocks, rows[0::3], rows[1::3], rows[2::3], strict=True):
            hidden = block(hidden, tuple(of_block))
        out: Tensor = self.out(modulate(self.norm(hidden), scale, shift))
        return out


def time_channels(time: Tensor) -> Tensor:
    """Sinusoidal channels of timesteps (...), (..., 256) float32: cosines, then sines."""
    half = TIME_CHANNELS // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=time.device) / half)
    angle = time.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def chunks(exact: Sequence[bool], size: int) -> list[range]:
    """For every step the run of steps that it is computed with: neighbours alike in ``exact``, at most ``size``."""
    found: list[range] = []
    for _, numbers in groupby(range(len(exact)), key=exact.__getitem__):
        run = list(numbers)
        for first in range(0, len(run), size):
            part = run[first : first + size]
            found += [range(part[0], part[-1] + 1)] * len(part)
    return found


Predict = Callable[[Tensor, int], Tensor]
"""Guided prediction at noisy tokens (B, n, C) and the timestep of a number, counted in the order of sampling."""
MODULATED_ROWS = 1024
"""Rows whose modulation is computed at once: enough for the speed of large products, and 84 MB for MAR-B."""


class DiffusionHead(Head):
    """Denoises tokens; it has no exact density."""

    config: DiffusionHeadConfig
    options: ClassVar[tuple[str, ...]] = ("temperature", "diffusion_steps", "scheduler")
    float32_layers = ("net",)

    def __init__(self, config: DiffusionHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.loss_unit = LOSS_UNITS[config.objective]
        self.net = Denoiser(config)
        self.half_net: Denoiser | None = None  # made by `prepare`

    @property
    def diffusion(self) -> Diffusion:
        """The process that the head is trained on."""
        return diffusion_of(NUM_TIMESTEPS, self.net.out.weight.device)

    # Training

    def loss(self, features: Tensor, targets: Tensor, *, noise: Noise | None = None) -> Tensor:
        """The objective, mean over draws and channels, (B, n); no likelihood.

        Args:
            features: (B, n, D).
            targets: (B, n, C).
            noise: Source of timesteps and noise; required.
        """
        if noise is None:
            raise ValueError("the diffusion head draws timesteps and noise; pass noise.")
        draws, tokens, channels = self.config.draws, *targets.shape[1:]
        flow = self.config.objective == "flow"
        time = noise.normal(draws, tokens).sigmoid() if flow else self._timesteps(noise, tokens)
        added = noise.normal(draws, tokens, channels).to(targets.dtype)
        with torch.autocast(features.device.type, enabled=False):
            condition = in_float32(self.net.condition_embed, features).unsqueeze(1)
            start = at_least_float32(targets).unsqueeze(1).expand_as(added)
            per_draw = self.flow_loss if flow else self.epsilon_loss
            return per_draw(start, condition, time, added).mean(1)

    def epsilon_loss(self, start: Tensor, condition: Tensor, index: Tensor, added: Tensor) -> Tensor:
        """Squared error of the noise plus the variational bound, whose gradient reaches the variance alone.

        Args:
            start: Tokens, (..., C).
            condition: Projected features, broadcastable to (..., W).
            index: Timesteps, (...) int64.
            added: Standard normal noise, (..., C).

        Returns:
            (...).
        """
        noisy = self.diffusion.add_noise(start, index, added)
        epsilon, fraction = in_float32(self.net, noisy, index, condition).chunk(2, dim=-1)
        reverse = self.diffusion.reverse(epsilon.detach(), fraction, noisy, index)
        bound = self.diffusion.variational_bound(start, noisy, index, reverse)
        loss: Tensor = (epsilon - added).square().mean(-1) + bound
        return loss

    def flow_loss(self, start: Tensor, condition: Tensor, time: Tensor, added: Tensor) -> Tensor:
        """Squared error of the velocity ``start - added`` on the straight path, (...); time 0 is noise, 1 the token."""
        share = time[..., None].to(start.dtype)
        velocity = in_float32(self.net, torch.lerp(added, start, share), NUM_TIMESTEPS * time, condition)
        loss: Tensor = (velocity - (start - added)).square().mean(-1)
        return loss

    def _timesteps(self, noise: Noise, tokens: int) -> Tensor:
        return (noise.uniform(self.config.draws, tokens) * NUM_TIMESTEPS).long()

    # Sampling

    def sample(
        self,
        features: Tensor,
        options: SamplingOptions,
        *,
        uncond_features: Tensor | None = None,
        guidance_scale: Tensor | float = 1.0,
        noise: Noise,
    ) -> Tensor:
        """Draws tokens: ancestral sampling, a scheduler of diffusers, or for flow Heun's method.

        Guidance acts on the predicted noise or velocity. Temperature scales the noise of ancestral steps as published;
        for flow it scales the noise that the path starts from.

        Returns:
            (B, n, C), float32 or better.

        Raises:
            ValueError: If an option does not fit the objective or the scheduler, or the tokens are not finite.
        """
        self.check_options(options)
        steps = options.diffusion_steps or self.config.diffusion_steps
        scheduler = None if options.scheduler == OWN else options.scheduler
        with torch.autocast(features.device.type, enabled=False):
            predictor = partial(self.predictor, features, uncond_features, guidance_scale)
            x = noise.normal(features.shape[1], self.config.channels).to(at_least_float32(features).dtype)
            if self.config.objective == "flow":
                if scheduler is not None:
                    raise ValueError(
                        f"scheduler '{scheduler}' is for models that predict noise, and this one predicts a flow; take "
                        f"'{OWN}', or leave the scheduler out."
                    )
                times = torch.linspace(0, 1, steps + 1, device=x.device)
                velocity = predictor(NUM_TIMESTEPS * times[:-1], [False] * steps)
                return heun(velocity, x * options.temperature, times)
            check_steps(steps)
            if scheduler is not None:
                return self._by_scheduler(predictor, x, scheduler, options.temperature, steps)
            diffusion = diffusion_of(steps, x.device)
            predict = predictor(diffusion.timesteps.flip(0), diffusion.amplifies[::-1])
            *_, last = self.trajectory(predict, x, steps, options.temperature, noise)
            return last

    def predictor(
        self,
        features: Tensor,
        uncond_features: Tensor | None,
        guidance_scale: Tensor | float,
        times: Tensor,
        exact: Sequence[bool] | None = None,
    ) -> Predict:
        """The guided network at given features and at the timesteps (T,) of sampling, in their order.

        What does not depend on the noisy tokens is computed for many timesteps at once. Where a step is not ``exact``,
        a head that is prepared for half precision uses it; None takes all steps as exact.
        """
        parts = [features] if uncond_features is None else [features, uncond_features]
        channels = self.config.channels
        if exact is None or self.half_net is None:
            exact = [True] * len(times)
        nets = (self.half_net or self.net, float32_module(self.net))  # by whether a step is exact
        stacked = at_least_float32(torch.stack(parts))  # (1 or 2, B, n, D)
        conditions = {kind: at_least_float32(nets[kind].condition_embed(stacked)) for kind in set(exact)}
        chunk_of = chunks(exact, max(1, MODULATED_ROWS // max(1, stacked[..., 0].numel())))

        @lru_cache(maxsize=1)
        def modulations(chunk: range) -> Tensor:
            some, kind = times[chunk.start : chunk.stop].view(-1, 1, 1, 1), exact[chunk.start]
            return nets[kind].modulation(some, conditions[kind])  # (steps, 1 or 2, B, n, ...)

        def predict(x: Tensor, number: int) -> Tensor:
            chunk = chunk_of[number]
            modulation = modulations(chunk)[number - chunk.start]
            out = nets[exact[number]].denoise(x.expand(len(parts), *x.shape), modulation)
            moved, rest = out[..., :channels], out[0, ..., channels:]
            guided = guide(moved[0], None if len(parts) == 1 else moved[1], guidance_scale)
            return torch.cat([guided, rest], dim=-1)

        return predict

    def prepare(self, dtype: torch.dtype) -> None:
        """Readies the network in float32, and for half precision a copy in that for the steps that bear it."""
        if dtype.itemsize < 4:
            self.half_net = copy.deepcopy(self.net)
            ready_linears(self.half_net, lambda name: torch.float32 if name == "out" else dtype)
        super().prepare(dtype)

    def trajectory(self, predict: Predict, x: Tensor, steps: int, temperature: float, noise: Noise) -> Iterator[Tensor]:
        """Ancestral sampling from noise x (B, n, C): the tokens after each step, the last ones are the sample."""
        diffusion = diffusion_of(steps, x.device)
        for number, step in enumerate(reversed(range(diffusion.num_steps))):
            index = torch.full((), step, device=x.device)
            epsilon, fraction = predict(x, number).chunk(2, dim=-1)
            mean, log_variance = diffusion.reverse(epsilon, fraction, x, index)
            drawn = noise.normal(*x.shape[1:]).to(x.dtype)
            x = mean + (0.5 * log_variance).exp() * drawn * temperature if step else mean
            yield x

    def _by_scheduler(
        self, predictor: Callable[[Tensor], Predict], x: Tensor, name: str, temperature: float, steps: int
    ) -> Tensor:
        if temperature != 1.0:
            raise ValueError(f"scheduler '{name}' adds no noise that temperature could scale; set it to 1.")
        scheduler = make_scheduler(name)
        generator, channels = torch.Generator().manual_seed(0), self.config.channels
        keywords = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
        before = generator.get_state()
        with _named(name):
            scheduler.set_timesteps(steps, device=x.device)
            x = x * scheduler.init_noise_sigma
        predict = predictor(scheduler.timesteps)
        for number, time in enumerate(scheduler.timesteps):
            with _named(name):
                scaled = scheduler.scale_model_input(x, time)
            epsilon = predict(scaled, number)[..., :channels]
            with _named(name):
                x = scheduler.step(epsilon, time, x, **keywords).prev_sample
            if not generator.get_state().equal(before):
                raise ValueError(
                    f"scheduler '{name}' draws noise that cannot belong to an image; use a deterministic one, such as "
                    f"{', '.join(SCHEDULERS)}."
                )
        if not x.isfinite().all():
            raise ValueError(f"scheduler '{name}' gives no finite tokens in {steps} steps; take fewer, or another one.")
        return x


def heun(velocity: Predict, x: Tensor, times: Tensor) -> Tensor:
    """Solves dx/dt = velocity at times (T + 1,) from 0 to 1, with Heun's method but at the end: 1 is not trained."""
    steps = len(times) - 1
    for index in range(steps):
        width = times[index + 1] - times[index]
        first = velocity(x, index)
        moved = x + width * first
        if index < steps - 1:
            second = velocity(moved, index + 1)
            moved = x + width * (first + second) / 2
        x = moved
    return x


def make_scheduler(name: str) -> Any:
    """A scheduler of diffusers over the head's betas, by short or class name.

    Raises:
        ValueError: If diffusers has no such scheduler, or it does not take the betas.
    """
    import inspect

    import diffusers

    def is_scheduler(name: str) -> bool:
        found = getattr(diffusers, name, None)  # a class whose own library is missing is no scheduler
        return inspect.isclass(found) and issubclass(found, diffusers.SchedulerMixin)

    if not is_scheduler(SCHEDULERS.get(name, name)):
        known = [OWN, *SCHEDULERS, *(n for n in dir(diffusers) if n.endswith("Scheduler") and is_scheduler(n))]
        raise ValueError(f"unknown scheduler '{name}'; {nearest(name, known)}.")
    found: Any = getattr(diffusers, SCHEDULERS.get(name, name))
    wanted = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "trained_betas": cosine_betas().tolist(),
        "prediction_type": "epsilon",
        "clip_sample": False,
        "timestep_spacing": "linspace",
        "lambda_min_clipped": -5.1,  # the cosine schedule ends so noisy that the solver's logarithms would diverge
    }
    taken = inspect.signature(found).parameters
    if "trained_betas" not in taken:
        raise ValueError(f"scheduler '{name}' has a noise schedule of its own; use one of {', '.join(SCHEDULERS)}.")
    with _named(name):
        return found(**{key: value for key, value in wanted.items() if key in taken})


@contextmanager
def _named(scheduler: str) -> Iterator[None]:
    """Turns whatever a class of diffusers raises, each in its own way, into one line that names it."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, AssertionError, NotImplementedError) as error:
        reason = one_line(error)
        raise ValueError(
            f"scheduler '{scheduler}' of diffusers cannot drive this head ({reason}); use one of "
            f"{', '.join(SCHEDULERS)}."
        ) from None
