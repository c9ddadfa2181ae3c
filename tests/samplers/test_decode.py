"""The decode loop and its guidance schedules."""

import math
from typing import Any, get_args

import pytest
import torch

from apps.request import SCHEDULES as REQUESTED
from genaim.core.noise import NoiseSource
from genaim.core.order import Step
from genaim.heads import SamplingOptions
from genaim.models import Given
from genaim.models.base import GuidanceSchedule
from samplers.decode import decode
from samplers.generate import generate
from samplers.guidance import SCHEDULES
from tests.tiny import make_latents, make_model, make_var


def step(number: int, total: int, share: float = 0.0) -> Step:
    return Step(torch.zeros(2, 1, dtype=torch.int64), torch.full((2,), share), number, total)


def test_var_ramp_is_the_published_one() -> None:
    """Published cfg t = 1.5 k / (K - 1), logits (1 + t) cond - t uncond, is our scale 1 + t."""
    scales = [SCHEDULES["linear_in_step"](2.5, step(k, 10))[0].item() for k in range(10)]
    assert scales == pytest.approx([1 + 1.5 * k / 9 for k in range(10)])


def test_mar_schedule_uses_the_share_at_the_end_of_the_step() -> None:
    assert SCHEDULES["linear_in_share"](2.9, step(0, 4, share=0.25)).tolist() == pytest.approx([1.475, 1.475])


def test_constant() -> None:
    assert SCHEDULES["constant"](3.0, step(2, 4)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scale_of_one_is_off_everywhere(name: str) -> None:
    for number in range(4):
        assert SCHEDULES[name](1.0, step(number, 4, share=(number + 1) / 4)).tolist() == [1.0, 1.0]


def test_every_step_is_told_and_can_stop_the_generation() -> None:
    model = make_var()
    seen = []

    class Stop(Exception):
        pass

    def on_step(told: Step, canvas: torch.Tensor) -> None:
        seen.append((told.number, int((canvas != 0).any())))
        if told.number == 1:
            raise Stop

    with pytest.raises(Stop):
        decode(model, torch.tensor([0, 1]), noise=NoiseSource(0, torch.arange(2)), on_step=on_step)
    assert [number for number, _ in seen] == [0, 1]


def test_requests_do_not_share_state() -> None:
    """Two generations in turns give what each gives alone."""
    model = make_var()
    labels = torch.tensor([0, 3])

    def start(seed: int) -> torch.Tensor:
        return decode(model, labels, noise=NoiseSource(seed, torch.arange(2)), guidance_scale=2.0)

    alone = start(0)
    inner: list[torch.Tensor] = []
    outer = decode(
        model,
        labels,
        noise=NoiseSource(0, torch.arange(2)),
        guidance_scale=2.0,
        on_step=lambda told, canvas: inner.append(start(told.number)),
    )
    assert outer.equal(alone)
    assert inner[0].equal(alone)


def test_given_scales_were_drawn_and_thrown_away() -> None:
    """The draws of one row stay those that it has beside a row of which nothing is given."""
    drawn: list[int] = []

    class Counted(NoiseSource):
        def uniform(self, *shape: int) -> torch.Tensor:
            drawn.append(shape[0])
            return super().uniform(*shape)

    model, labels = make_var(), torch.tensor([0, 3])
    tokens = torch.randint(0, 32, (2, model.order.num_tokens))
    known = (model.order.step_ids() < 2) & torch.tensor([[True], [False]])
    both = decode(model, labels, noise=Counted(0, torch.arange(2)), given=Given(tokens, known), guidance_scale=2.0)
    assert drawn == [1, 4, 16]
    drawn.clear()
    given = Given(tokens[:1], known[:1])
    alone = decode(model, labels[:1], noise=Counted(0, torch.arange(1)), given=given, guidance_scale=2.0)
    assert drawn == [0, 0, 16]
    assert alone.equal(both[:1]) and alone[0, :5].equal(tokens[0, :5]) and not both[1, :5].equal(tokens[1, :5])


def test_a_fixed_order_refuses_a_number_of_steps() -> None:
    with pytest.raises(ValueError, match="9 steps are asked for, but the order 'scales' always takes 3"):
        decode(make_var(), torch.tensor([0]), noise=NoiseSource(0, torch.arange(1)), num_steps=9)


def test_a_ramp_by_steps_would_depend_on_what_other_images_are_given() -> None:
    model = make_model("causal", make_latents(), "mixture", known_first=0.0)
    size = (1, model.order.num_tokens)
    given = Given(torch.zeros(*size, model.tokenizer.token_channels), torch.zeros(size, dtype=torch.bool))
    ask: dict[str, Any] = {"noise": NoiseSource(0, torch.arange(1)), "guidance_schedule": "linear_in_step"}
    decode(model, torch.tensor([0]), **ask)
    with pytest.raises(ValueError, match=r"goes by the number of steps, .*; take linear_in_share or constant"):
        decode(model, torch.tensor([0]), given=given, guidance_scale=2.0, **ask)
    decode(model, torch.tensor([0]), given=given, **ask)  # without guidance there is no ramp


def test_the_schedules_are_those_that_a_config_may_name() -> None:
    assert tuple(SCHEDULES) == get_args(GuidanceSchedule) == REQUESTED


def test_a_schedule_is_asked_for_or_stored() -> None:
    labels = torch.tensor([1, 2])
    drawn = {
        name: decode(
            make_var(), labels, noise=NoiseSource(0, torch.arange(2)), guidance_scale=300.0, guidance_schedule=name
        )
        for name in SCHEDULES
    }
    stored = make_var(sampling={"guidance_scale": 300.0, "guidance_schedule": "constant"})
    images = generate(stored, labels)
    assert images.equal(stored.tokenizer.decode(drawn["constant"]))
    assert images.equal(generate(make_var(), labels, guidance_scale=300.0, guidance_schedule="constant"))
    assert generate(stored, labels, guidance_schedule="linear_in_step").equal(
        generate(make_var(), labels, guidance_scale=300.0)
    )
    assert not drawn["constant"].equal(drawn["linear_in_step"])
    with pytest.raises(ValueError, match="guidance_schedule"):
        make_var(sampling={"guidance_schedule": "cosine"})


def test_a_model_without_classes_has_nothing_to_be_guided_to() -> None:
    with pytest.raises(ValueError, match="guidance_scale 2 needs classes, and the model has none"):
        generate(make_var(num_classes=0), torch.tensor([0]), guidance_scale=2.0)


def rows_given(rows: int, known: torch.dtype = torch.bool, count: int = 21) -> Given:
    return Given(torch.zeros(rows, count, dtype=torch.int64), torch.zeros(rows, count, dtype=known))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 3], {}, r"labels must be a tensor of integers, \(B,\).*not a list"),
        (torch.tensor([0.0, 3.0]), {}, r"labels must be .*not torch\.float32 of shape \(2,\)"),
        (torch.tensor([[0, 3]]), {}, r"labels must be .*not torch\.int64 of shape \(1, 2\)"),
        (None, {"given": rows_given(3)}, r"given\.tokens must be \(2, 21\) for 2 labels .*not \(3, 21\)"),
        (None, {"given": rows_given(1)}, r"given\.tokens must be \(2, 21\) for 2 labels .*not \(1, 21\)"),
        (None, {"given": rows_given(2, count=9)}, r"given\.tokens must be .* the model's 21 tokens, not \(2, 9\)"),
        (None, {"given": rows_given(2, torch.int64)}, r"given\.known must be bool.*not torch\.int64"),
        (None, {"low_res": torch.zeros(3, 3, 4, 4)}, "low_res has 3 images for 2 labels"),
        (None, {"guidance_scale": float("nan")}, "guidance_scale must be a finite number, not nan"),
        (None, {"num_steps": -3}, "-3 steps are asked for; ask for 1 or more"),
    ],
)
def test_inputs_that_do_not_fit_are_named(labels: Any, options: dict[str, Any], message: str) -> None:
    model, labels = make_var(), torch.tensor([0, 3]) if labels is None else labels
    with pytest.raises(ValueError, match=message):
        generate(model, labels, **options)
    with pytest.raises(ValueError, match=message):
        decode(model, labels, noise=NoiseSource(0, torch.arange(2)), **options)


@pytest.mark.parametrize("default", [{"guidance_scale": math.nan}, {"guidance_scale": math.inf}, {"num_steps": -3}])
def test_stored_defaults_are_in_range(default: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(default))):
        make_var(sampling=default)


def test_options_reach_the_head() -> None:
    model = make_var()
    greedy = [
        decode(model, torch.tensor([2]), noise=NoiseSource(seed, torch.arange(1)), options=SamplingOptions(top_k=1))
        for seed in (0, 1)
    ]
    assert greedy[0].equal(greedy[1])
