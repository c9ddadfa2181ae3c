"""Training that starts from another model's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genaim.models import AIM, VAR, AIMConfig
from genaim.pretrained import from_pretrained, load_generator, load_tokenizer, save_model
from genaim.tokenizers import MultiScaleVQ
from genaim.training.checkpoint import checkpoints
from genaim.training.config import parse_run
from genaim.training.init import start_from
from genaim.training.run import train
from tests.tiny import make_tokenizer, make_var
from tests.training.runs import StopAt, make_images, recipe
from tests.training.runs import make_tokenizer as save_tokenizer

KEPT_STILL = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}  # so that the trained weights are the first ones


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_images(tmp_path / "images")
    save_tokenizer(tmp_path)
    return tmp_path


def start(config: dict[str, Any], stop_at: int | None = None) -> tuple[Path, StopAt, list[str]]:
    """Runs a recipe; also returns the names that were read."""
    progress, asked = StopAt(stop_at), []
    run = parse_run(config, "test")
    tokenizer = load_tokenizer(run.tokenizer) if isinstance(run.tokenizer, str) else None

    def load(name: str) -> Any:
        asked.append(name)
        return from_pretrained(name)

    return train(run, progress, tokenizer=tokenizer, store_tokenizer=save_model, load_model=load), progress, asked


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder)[-1] / "weights.safetensors")


def test_a_generator_starts_from_a_run_folder(root: Path) -> None:
    first, _, _ = start(recipe(root, "generator", name="first", steps=2))
    expected = load_generator(str(first)).state_dict_without_tokenizer()
    tuned = recipe(root, "generator", name="tuned", steps=2, init=str(first), optimizer=KEPT_STILL)
    folder, progress, asked = start(tuned)
    assert asked == [str(first)]
    assert f"starting from the weights of '{first}'" in progress.lines
    assert not any("WARNING" in line for line in progress.lines)
    got = last_weights(folder)
    assert got.keys() == expected.keys()
    assert all(torch.allclose(got[name], weight, rtol=0, atol=1e-20) for name, weight in expected.items())


def test_a_resumed_run_does_not_read_it_again(root: Path) -> None:
    source = str(start(recipe(root, "generator", name="first", steps=2))[0])
    whole, _, _ = start(recipe(root, "generator", name="whole", init=source))
    parts = recipe(root, "generator", name="parts", init=source)
    with pytest.raises(RuntimeError, match="crash"):
        start(parts, 3)
    folder, progress, asked = start(parts)
    assert asked == []
    assert any("continuing" in line for line in progress.lines)
    expected, got = last_weights(whole), last_weights(folder)
    assert all(got[name].equal(weight) for name, weight in expected.items())
    with pytest.raises(ValueError, match="holds a run with another 'init'"):
        start(parts | {"init": None})


def test_a_tokenizer_starts_from_a_tokenizer_or_from_that_of_a_generator(root: Path) -> None:
    expected = load_tokenizer(str(root / "tokenizer")).state_dict()
    generator, _, _ = start(recipe(root, "generator", name="generator", steps=1))
    for name, source in (("a", root / "tokenizer"), ("b", generator)):
        config = recipe(root, "tokenizer", name=name, steps=1, init=str(source), optimizer=KEPT_STILL)
        got = last_weights(start(config)[0])
        same = [key for key in expected if key != "codebook.usage"]  # statistics of the codes' use go on
        assert all(torch.allclose(got[key], expected[key], rtol=0, atol=1e-20) for key in same)


# The weights alone


def changed_classes(num_classes: int) -> tuple[VAR, VAR, StopAt]:
    source, model, progress = make_var(num_classes=5), make_var(num_classes=num_classes), StopAt(None)
    for parameter in model.parameters():
        parameter.data += 1
    model.tokenizer.load_state_dict(source.tokenizer.state_dict())
    return source, model, progress


@pytest.mark.parametrize("num_classes", [2, 9, 0])
def test_other_classes_replace_the_class_table_alone(num_classes: int) -> None:
    source, model, progress = changed_classes(num_classes)
    fresh = model.class_embed.table.weight.clone()
    start_from(model, source, "source", progress)
    table = model.class_embed.table.weight
    assert table[:-1].equal(fresh[:-1])
    assert table[-1].equal(source.class_embed.table.weight[-1])
    for name, weight in source.state_dict().items():
        assert name == "class_embed.table.weight" or model.state_dict()[name].equal(weight)
    (line,) = progress.lines
    assert line == (
        f"starting from the weights of 'source', but for its classes: 5 classes give way to {num_classes} fresh ones, "
        "and the null class is kept"
    )


def test_the_source_is_not_changed() -> None:
    source, model, progress = changed_classes(2)
    before = {name: weight.clone() for name, weight in source.state_dict().items()}
    start_from(model, source, "source", progress)
    model.head.linear.weight.data += 1
    assert all(weight.equal(before[name]) for name, weight in source.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"width": 64}, ["start_embed is (1, 32) there and (1, 64) here", "width=32 there and 64 here"]),
        ({"depth": 3}, ["transformer.blocks.2", "is missing there", "depth=2 there and 3 here"]),
        ({"depth": 1}, ["transformer.blocks.1", "is missing here", "depth=2 there and 1 here"]),
        ({"shared_adaln": True}, ["shared_adaln=False there and True here"]),
    ],
)
def test_another_shape_is_named(changes: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError, match="init 'source' does not fit the recipe's model") as error:
        start_from(make_var(**changes), make_var(), "source", StopAt(None))
    text = str(error.value)
    assert "\n" not in text
    assert all(fragment in text for fragment in fragments), text


def test_another_tokenizer_is_told() -> None:
    other = make_tokenizer()
    other.codebook.weight.data += 1
    progress = StopAt(None)
    start_from(make_var(), make_var(other), "source", progress)
    assert progress.lines[0].startswith("WARNING: init 'source' was trained with another tokenizer")


def test_a_tokenizer_rounded_to_16_bits_is_the_same() -> None:
    rounded = make_tokenizer().to(torch.bfloat16).float()
    progress = StopAt(None)
    start_from(make_var(), make_var(rounded), "source", progress)
    assert len(progress.lines) == 1


def test_a_model_does_not_start_from_another_kind() -> None:
    with pytest.raises(ValueError, match="init 'vq' is a tokenizer, but the recipe trains a generator"):
        start_from(make_var(), make_tokenizer(), "vq", StopAt(None))
    with pytest.raises(ValueError, match="init 'aim' is an encoder, but the recipe trains a tokenizer"):
        start_from(make_tokenizer(), make_encoder(), "aim", StopAt(None))


def make_encoder(**changes: Any) -> AIM:
    shape = {"image_size": 8, "patch_size": 2, "depth": 1, "width": 16, "num_heads": 2, "head_depth": 1}
    return AIM(AIMConfig.model_validate({**shape, "head_width": 16, **changes}))


@pytest.mark.parametrize("head_depth", [1, None])
def test_an_encoder_starts_with_or_without_a_pixel_head(head_depth: int | None) -> None:
    source, model, progress = make_encoder(head_depth=head_depth), make_encoder(), StopAt(None)
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    start_from(model, source, "aim", progress)
    for name, weight in model.state_dict().items():
        fresh = head_depth is None and name.startswith("pixel_head.")
        assert weight.equal(own[name] if fresh else source.state_dict()[name]), name
    told = ", but for its pixel head, which starts fresh" * (head_depth is None)
    assert progress.lines == [f"starting from the weights of 'aim'{told}"]
    with pytest.raises(ValueError, match="depth=1 there and 2 here"):
        start_from(make_encoder(depth=2), source, "aim", progress)


def test_tokenizers_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"codebook\.weight is \(32, 4\) there and \(16, 4\) here"):
        start_from(make_tokenizer(codebook={"size": 16}), make_tokenizer(), "vq", StopAt(None))
    scales = make_tokenizer(patch_nums=[1, 3, 4])
    assert isinstance(scales, MultiScaleVQ)
    start_from(scales, make_tokenizer(), "vq", StopAt(None))  # weights fit any scales


def test_the_run_records_where_it_started(root: Path) -> None:
    source = str(start(recipe(root, "generator", name="first", steps=1))[0])
    folder, _, _ = start(recipe(root, "generator", name="tuned", steps=1, init=source))
    assert f"init: {source}\n" in (folder / "config.yaml").read_text()
