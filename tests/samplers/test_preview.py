"""What can be seen of a generation in progress."""

import pytest
import torch
from torch import Tensor

from genaim.core.order import Step
from samplers.generate import generate
from samplers.preview import preview
from tests.tiny import SINGLE_GRID, make_model, make_var

MODELS = {
    "var": make_var,
    "mar": lambda: make_model("mar", SINGLE_GRID["latents"](), "flow"),
    "causal": lambda: make_model("causal", SINGLE_GRID["codes"](), "categorical"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_picture_forms_and_ends_as_the_result(name: str) -> None:
    model = MODELS[name]()
    seen: list[Tensor] = []

    def on_step(step: Step, tokens: Tensor) -> None:
        seen.append(preview(model, step, tokens))

    images = generate(model, torch.tensor([0, 3]), on_step=on_step)
    assert seen[-1].equal(images)
    assert all(picture.shape == images.shape for picture in seen)
    assert not seen[0].equal(images)


def test_scales_that_are_not_there_yet_add_nothing() -> None:
    model = make_var()
    tokenizer, seen = model.tokenizer, list[tuple[Tensor, Tensor]]()
    generate(model, torch.tensor([1]), on_step=lambda step, t: seen.append((preview(model, step, t), t.clone())))
    for (picture, tokens), size in zip(seen, (1, 5, 21), strict=True):
        assert picture.equal(tokenizer.decode(tokens[:, :size]))
