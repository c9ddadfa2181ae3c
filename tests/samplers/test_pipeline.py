"""The pipeline by diffusers' conventions: the pictures of the command line, and its options."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.request import SampleRequest
from apps.sample import sample
from genaim.pretrained import load_generator, save_model
from samplers import GenAIMPipeline
from tests.tiny import make_latents, make_model, make_var

ROOT = Path(__file__).parents[2]
NAMES = ("Cat", "Dog", "Fish")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose classes and options matter."""
    model = make_var(num_classes=3, class_names=NAMES, sampling={"guidance_scale": 1.5, "top_k": 20})
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


@pytest.fixture
def pipe(folder: Path) -> GenAIMPipeline:
    pipe = GenAIMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def same(a: Any, b: Any) -> bool:
    return bool((pixels(a.images) == pixels(b.images)).all())


@pytest.mark.parametrize(
    ("options", "request_options"),
    [
        ({}, {}),
        (
            {"class_labels": ["dog", 2] * 10, "guidance_scale": 3.0, "temperature": 0.8, "top_k": 0, "top_p": 0.9},
            {"classes": ("dog,2",), "count": 20, "guidance_scale": 3.0, "temperature": 0.8, "top_k": 0, "top_p": 0.9},
        ),
    ],
)
def test_a_seed_gives_the_pictures_of_the_command_line(
    folder: Path, pipe: GenAIMPipeline, tmp_path: Path, options: dict[str, Any], request_options: dict[str, Any]
) -> None:
    sample(SampleRequest(str(folder), seed=5, device="cpu", **request_options), tmp_path / "out")
    written = [Image.open(path) for path in sorted((tmp_path / "out").glob("0*.png"))]
    images = pipe.prepare()(seed=5, **options).images
    assert len(images) == len(written) > 0
    assert (pixels(images) == pixels(written)).all()


def test_a_model_s_own_scheduler_and_steps_are_those_of_the_command_line(tmp_path: Path) -> None:
    sampling = {"guidance_scale": 2.0, "num_steps": 3, "scheduler": "ddim", "diffusion_steps": 3}
    model = make_model("mar", make_latents(), "diffusion", sampling=sampling)
    save_model(tmp_path / "model", model)
    folder = sample(SampleRequest(str(tmp_path / "model"), seed=2, count=3, device="cpu"), tmp_path / "out")
    written = [Image.open(path) for path in sorted(folder.glob("0*.png"))]
    pipe = GenAIMPipeline.from_pretrained(tmp_path / "model")
    pipe.prepare().set_progress_bar_config(disable=True)
    assert (pixels(pipe(class_labels=[0, 1, 2], seed=2).images) == pixels(written)).all()
    steps: list[int] = []
    other = pipe(
        class_labels=[0, 1, 2], seed=2, num_inference_steps=5, callback_on_step_end=lambda *told: steps.append(told[1])
    )
    assert steps == [0, 1, 2, 3, 4]
    assert not (pixels(other.images) == pixels(written)).all()


@pytest.mark.parametrize("options", [{"diffusion_steps": 6, "scheduler": "euler"}, {"scheduler": "own"}])
def test_diffusion_steps_and_scheduler_are_those_of_the_command_line(tmp_path: Path, options: dict[str, Any]) -> None:
    model = make_model("mar", make_latents(), "diffusion", sampling={"num_steps": 3, "scheduler": "ddim"})
    save_model(tmp_path / "model", model)
    folder = sample(SampleRequest(str(tmp_path / "model"), seed=2, count=2, device="cpu", **options), tmp_path / "out")
    written = [Image.open(path) for path in sorted(folder.glob("0*.png"))]
    pipe = GenAIMPipeline.from_pretrained(tmp_path / "model").prepare()
    pipe.set_progress_bar_config(disable=True)
    assert (pixels(pipe(class_labels=[0, 1], seed=2, **options).images) == pixels(written)).all()
    exact = [pipe(class_labels=[0, 1], seed=2, output_type="pt", **asked).images for asked in ({}, options)]
    assert not torch.equal(*exact)  # of random weights solvers differ by less than a level


def test_save_and_load_keep_the_pictures(pipe: GenAIMPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    again = GenAIMPipeline.from_pretrained(str(tmp_path / "saved"))
    assert same(again(class_labels=[0, 1], seed=0), pipe(class_labels=[0, 1], seed=0))
    assert load_generator(str(tmp_path / "saved")).config == pipe.model.config


def test_a_generator_gives_new_pictures_and_repeats_them(pipe: GenAIMPipeline) -> None:
    first, second = ([pipe(class_labels=1, generator=g) for _ in range(2)] for g in (make(4), make(4)))
    assert same(first[0], second[0]) and same(first[1], second[1])
    assert not same(first[0], first[1])
    torch.manual_seed(0)
    free = [pipe(class_labels=1) for _ in range(2)]
    assert not same(free[0], free[1])
    torch.manual_seed(0)
    assert same(pipe(class_labels=1), free[0])
    with pytest.raises(ValueError, match="both a generator and seed=3 are given"):
        pipe(class_labels=1, generator=make(4), seed=3)


def make(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_classes_by_number_and_name(pipe: GenAIMPipeline) -> None:
    numbers = pipe(class_labels=[0, 1, 2], seed=0)
    assert same(pipe(class_labels=["CAT", "dog", "2"], seed=0), numbers)
    assert len(pipe(class_labels="fish", seed=0).images) == 1
    with pytest.raises(ValueError, match=r"unknown class 'fich'; did you mean 'Fish'\?"):
        pipe(class_labels=["fich"])
    with pytest.raises(ValueError, match="unknown class '3'"):
        pipe(class_labels=[3])


@pytest.mark.parametrize("kind", [torch.tensor, np.array, lambda numbers: np.array(numbers, np.uint8)])
def test_classes_as_a_tensor_or_array(pipe: GenAIMPipeline, kind: Any) -> None:
    assert same(pipe(class_labels=kind([0, 2]), seed=0), pipe(class_labels=[0, 2], seed=0))
    assert same(pipe(class_labels=list(kind([0, 2])), seed=0), pipe(class_labels=[0, 2], seed=0))
    for wrong in (
        kind([[0, 2]]),
        torch.tensor([0.0]),
        torch.ones(1, dtype=torch.bfloat16),
        np.array([True]),
        torch.tensor(0),
    ):
        with pytest.raises(ValueError, match=r"class_labels is .* of shape .*; give integers of shape \(B,\)"):
            pipe(class_labels=wrong)
    with pytest.raises(ValueError, match="unknown class '3'"):
        pipe(class_labels=kind([3]))


def test_a_prepared_pipeline_goes_to_where_it_is(pipe: GenAIMPipeline) -> None:
    pipe.to(torch.float32).prepare()
    assert pipe.to("cpu").to(torch.device("cpu"), torch.float32) is pipe
    assert len(pipe(class_labels=[0], seed=0).images) == 1
    with pytest.raises(ValueError, match="load it anew to move"):
        pipe.to("meta")


def test_the_calls_of_other_pipelines(pipe: GenAIMPipeline, tmp_path: Path) -> None:
    assert pipe.to(device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16
    pipe.save_pretrained(tmp_path / "saved", safe_serialization=True)
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="safe_serialization is False; genaim writes safetensors alone"):
        pipe.save_pretrained(tmp_path / "saved", safe_serialization=False)


def test_an_unconditional_model_takes_no_classes() -> None:
    pipe = GenAIMPipeline(make_var(num_classes=0))
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(seed=0).images) == 16
    with pytest.raises(ValueError, match="has no classes"):
        pipe(class_labels=[0])


def test_output_types(pipe: GenAIMPipeline) -> None:
    pil, pt, array = (pipe(class_labels=[0, 2], seed=1, output_type=kind).images for kind in ("pil", "pt", "np"))
    assert (tuple(pt.shape), array.shape) == ((2, 3, 8, 8), (2, 8, 8, 3))
    assert isinstance(pt, torch.Tensor) and isinstance(array, np.ndarray)
    assert 0 <= array.min() < array.max() <= 1
    assert (np.moveaxis(pt.numpy(), 1, -1) == array).all()
    assert np.abs(pixels(pil) / 255 - array).max() <= 0.5 / 255 + 1e-6
    (images,) = pipe(class_labels=[0, 2], seed=1, return_dict=False)
    assert (pixels(images) == pixels(pil)).all()
    with pytest.raises(ValueError, match="output_type is 'latent'; use pil, pt or np"):
        pipe(output_type="latent")


def test_every_step_is_told(pipe: GenAIMPipeline) -> None:
    told: list[tuple[int, int, tuple[int, ...]]] = []

    def callback(
        of: GenAIMPipeline, index: int, step: int, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        assert of is pipe
        told.append((index, step, tuple(tensors["tokens"].shape)))
        return tensors

    pipe(class_labels=[0, 1, 2], batch_size=2, callback_on_step_end=callback)
    assert told == [
        (0, 0, (2, 21)),
        (1, 1, (2, 21)),
        (2, 2, (2, 21)),
        (3, 0, (1, 21)),
        (4, 1, (1, 21)),
        (5, 2, (1, 21)),
    ]


def test_a_callback_can_stop_but_not_replace_tokens(pipe: GenAIMPipeline) -> None:
    class Stop(Exception):
        pass

    def stopping(*args: Any) -> None:
        raise Stop

    with pytest.raises(Stop):
        pipe(callback_on_step_end=stopping)
    with pytest.raises(ValueError, match="returned other tokens"):
        pipe(callback_on_step_end=lambda pipe, index, step, tensors: {"tokens": tensors["tokens"] + 1})


def test_options_that_a_model_lacks_are_refused(pipe: GenAIMPipeline) -> None:
    with pytest.raises(ValueError, match="9 steps are asked for, but the order 'scales' always takes 3"):
        pipe(num_inference_steps=9)
    assert same(pipe(num_inference_steps=3, seed=0), pipe(seed=0))
    with pytest.raises(ValueError, match="is a tokenizer, not a generator"):
        GenAIMPipeline.from_pretrained("mnist-vq")


def test_a_number_format_is_that_of_matrix_products(pipe: GenAIMPipeline) -> None:
    exact = pipe.to(torch.float32)(class_labels=[0, 1], seed=0, output_type="pt").images
    assert pipe.to("cpu", torch.bfloat16) is pipe
    assert pipe.dtype == torch.bfloat16
    rounded = pipe(class_labels=[0, 1], seed=0, output_type="pt").images
    assert next(pipe.model.parameters()).dtype == rounded.dtype == torch.float32
    assert not rounded.equal(exact)


def test_importing_the_samplers_does_not_import_diffusers() -> None:
    code = "import sys, samplers; print('diffusers' in sys.modules, samplers.generate.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "generate"]
    import samplers

    with pytest.raises(AttributeError, match="has no attribute 'Pipeline'"):
        _ = samplers.Pipeline
