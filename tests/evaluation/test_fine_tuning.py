"""Fine-tuning: what learns, how fast, and what stays as it is."""

from dataclasses import replace

import pytest
import torch

from genaim.data import Batch, Sample
from genaim.evaluation.fine_tuning import FineTuned, fine_tune, tuned_accuracy
from genaim.evaluation.probe_training import Training
from genaim.models import CausalGenerator
from tests.evaluation.test_features import make_aim
from tests.tiny import make_model, make_patches

TRAINING = Training(module="whole", lrs=(1e-2,), epochs=6, batch_size=16, warmup=0.1, layer_decay=0.8)


class Colours:
    """Red and blue pictures, with noise."""

    def __init__(self, count: int = 64, label: int | None = None) -> None:
        self.lengths, self.weights, self.label = [count], [1.0], label

    def sample(self, index: int, key: tuple[int, ...]) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image = 0.4 * torch.randn(3, 8, 8, generator=generator) - 0.5
        image[2 * (index % 2)] += 1
        return Sample(image.clamp(-1, 1), index % 2 if self.label is None else self.label, index, [])


def judged() -> list[Batch]:
    images = torch.stack([Colours().sample(i, ()).image for i in range(100, 140)])
    rows = torch.arange(40)
    return [Batch(images[part], rows[part] % 2, rows[part], rows[part]) for part in (slice(0, 25), slice(25, 40))]


@pytest.mark.parametrize("name", ["aim", "pixels"])
def test_it_learns_and_leaves_the_model_as_it_was(name: str) -> None:
    model = make_aim() if name == "aim" else make_model("causal", make_patches(grey=False), "logistic")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = fine_tune(model, Colours(), 2, TRAINING)
    assert tuned_accuracy(found, judged(), "cpu") > 0.95
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    moved = {key for key, value in found.model.state_dict().items() if not value.equal(before[key])}
    assert any(key.startswith("transformer.blocks.0.") for key in moved)
    if isinstance(model, CausalGenerator):
        assert not any(key.startswith("tokenizer.") for key in moved)
    assert not found.training


def test_a_seed_decides_it() -> None:
    model, short = make_aim(), replace(TRAINING, epochs=1)
    first, again, other = (fine_tune(model, Colours(), 2, short, seed=seed) for seed in (0, 0, 1))
    assert first.linear.weight.equal(again.linear.weight) and not first.linear.weight.equal(other.linear.weight)


def test_blocks_learn_the_slower_the_nearer_they_are_to_the_pixels() -> None:
    """Powers of the decay: 1 for what is new and the final norm, one more for every block, one more for the rest."""
    model = FineTuned(make_aim(), 2)
    shares = {name: model.lr_share(name, 0.5) for name, _ in model.named_parameters()}
    assert shares["linear.weight"] == shares["norm.bias"] == shares["model.transformer.norm.weight"] == 1.0
    assert [shares[f"model.transformer.blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert shares["model.patch_embed.proj.weight"] == 0.0625


def test_rows_are_judged_by_themselves() -> None:
    tuned = FineTuned(make_aim(), 2).eval()
    images = judged()[0].images
    assert images is not None
    torch.testing.assert_close(torch.cat([tuned(image[None]) for image in images]), tuned(images))


def test_images_without_a_class_and_no_images() -> None:
    with pytest.raises(ValueError, match="some training images have no class"):
        fine_tune(make_aim(), Colours(label=-1), 2, TRAINING)
    with pytest.raises(ValueError, match="no images to judge on"):
        tuned_accuracy(FineTuned(make_aim(), 2), [], "cpu")
