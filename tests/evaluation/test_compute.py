"""Operations equal their closed form, and the frozen tokenizer has no part in them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from genaim.core.noise import NoiseSource
from genaim.evaluation.compute import count_parameters, sampling_flops, training_flops
from genaim.heads import SamplingOptions
from genaim.heads.diffusion import TIME_CHANNELS
from genaim.models import GenerativeModel
from genaim.tokenizers import MultiScaleVQ
from samplers.decode import decode
from tests.tiny import HEADS, SINGLE_GRID, make_model, make_tokenizer, make_var

FITTING = [
    ("codes", "categorical"),
    ("latents", "gaussian"),
    ("latents", "diffusion"),
    ("latents", "flow"),
    ("patches", "coupled"),
]


@pytest.mark.parametrize("shared", [False, True])
def test_the_operations_of_var_equal_their_formula(shared: bool) -> None:
    model = make_var(shared_adaln=shared)
    tokens, width, depth, codes, channels = 21, 32, 2, 32, 4
    block = tokens * (3 + 1 + 8) * width**2 + 2 * tokens**2 * width  # qkv, proj, MLP; scores and values
    modulation = (1 if shared else depth) * 6 * width**2 + 2 * width**2  # once an image
    ends = (tokens - 1) * channels * width + tokens * width * codes
    assert training_flops(model) == 3 * 2 * (depth * block + modulation + ends)


def test_a_larger_tokenizer_changes_nothing() -> None:
    def flops(**changes: int) -> float:
        tokenizer = make_tokenizer(**changes)
        assert isinstance(tokenizer, MultiScaleVQ)
        return training_flops(make_var(tokenizer))

    assert flops(num_residual_convs=1) == flops(num_residual_convs=3)


@pytest.mark.parametrize(("tokens", "head"), FITTING)
@pytest.mark.parametrize("kind", ["causal", "mar"])
def test_every_model_is_counted_and_left_as_it_was(kind: str, tokens: str, head: str) -> None:
    model = make_model(kind, SINGLE_GRID[tokens](), head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flops = training_flops(model)
    assert flops == training_flops(model) > 0
    assert not model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_more_draws_of_a_diffusion_head_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = []
    for draws in (1, 4):
        monkeypatch.setitem(HEADS, "flow", {**HEADS["flow"], "draws": draws})
        flops.append(training_flops(make_model("mar", SINGLE_GRID["latents"](), "flow")))
    assert flops[0] < flops[1] < 4 * flops[0]


def test_a_model_with_a_low_resolution_image_is_counted() -> None:
    assert training_flops(make_var(low_res=4)) > training_flops(make_var())


def test_parameters_are_those_that_train() -> None:
    model = make_var(shared_adaln=False)
    width, depth = 32, 2
    counts = count_parameters(model)
    block = 12 * width**2 + (2 + 1 + 4 + 1) * width + 4 + 6 * width**2 + 6 * width  # biases; scales of 4 heads; AdaLN
    assert counts.transformer == depth * block + 2 * width**2 + 2 * width
    trained = [p for p in model.parameters() if p.requires_grad]
    assert counts.total == sum(p.numel() for p in trained) > counts.transformer
    mar = make_model("mar", SINGLE_GRID["latents"](), "gaussian")
    assert count_parameters(mar).transformer > max(
        sum(p.numel() for p in part.parameters()) for part in (mar.encoder, mar.decoder)
    )


def counted(work: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def generate_one(model: GenerativeModel, guidance_scale: float, options: SamplingOptions) -> Tensor:
    labels, noise = torch.tensor([0]), NoiseSource(0, torch.tensor([0]))
    tokens = decode(model, labels, noise=noise, guidance_scale=guidance_scale, options=options)
    return model.tokenizer.decode(tokens)


@pytest.mark.parametrize("guided", [False, True])
def test_the_operations_of_sampling_var_are_those_that_are_computed(guided: bool) -> None:
    model, tokens = make_var(), torch.zeros(1, 21, dtype=torch.int64)
    latents = counted(lambda: model.tokenizer.tokens_to_latent(tokens))  # the loop makes them, and the decoder anew
    found = sampling_flops(model, guided=guided)
    assert counted(lambda: generate_one(model, 1.0 + guided, SamplingOptions())) == sum(found.values()) + latents


@pytest.mark.parametrize("guided", [False, True])
def test_the_operations_of_sampling_mar_are_those_that_are_computed(guided: bool) -> None:
    model = make_model("mar", SINGLE_GRID["latents"](), "diffusion")
    found = sampling_flops(model, guided=guided, diffusion_steps=5)
    nothing, noise = torch.zeros(1, model.order.num_tokens, dtype=torch.bool), NoiseSource(0, torch.tensor([0]))
    times = 5 * len(list(model.order.steps(nothing, None, noise)))
    embeds = times * counted(lambda: model.head.net.time_embed(torch.zeros(1, TIME_CHANNELS)))
    options = SamplingOptions(diffusion_steps=5)
    assert counted(lambda: generate_one(model, 1.0 + guided, options)) == sum(found.values()) + embeds


def test_what_cannot_be_counted_is_named() -> None:
    with pytest.raises(ValueError, match="var and mar, not for CausalGenerator"):
        sampling_flops(make_model("causal", SINGLE_GRID["patches"](), "coupled"))
