"""The tabs of the web demo, and what they run, which is also its API."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from apps.demo_examples import load_examples
from apps.demo_jobs import WORKERS, Jobs, Sides, Update
from apps.demo_models import Models
from apps.demo_parts import (
    QUIET,
    Painted,
    Results,
    Settings,
    make_ask,
    make_painting,
    make_picture,
    make_results,
    make_settings,
    readable_errors,
)

Values = list[Any]
"""Values of components, in the order of an event's outputs."""


@dataclass
class Tab:
    """What the page knows of a tab."""

    name: str
    settings: Settings
    results: Results
    source: gr.components.Component | None = None
    """Where a picture is given."""


def generate_tab(models: Models, jobs: Jobs, sends: list[str]) -> Tab:
    """New pictures."""
    with gr.Tab("Generate", id="Generate"), gr.Row():
        with gr.Column(scale=4, min_width=340):
            settings = make_settings(models, models.painters, 8, "All classes in turn")
            run, cancel = make_buttons("Generate")
        with gr.Column(scale=6, min_width=340):
            results = make_results(False, sends)

    def generate(
        model: str, class_name: str, seed: float, guidance: float, temperature: float, count: float
    ) -> Iterator[Values]:
        """Draws new pictures. Returns the gallery of results, and a line that says how they were made.

        class_name is a name or number of the model's classes; "any class" takes all of them in turn. Result i of a
        seed is always the same picture.
        """
        ask = make_ask(model, class_name, seed, guidance, temperature, count)
        yield from told(lambda: jobs.generate(ask), results, f"{name_of(ask.model)}-seed{ask.seed}")

    connect(run, cancel, generate, settings.inputs, results)
    return Tab("Generate", settings, results)


def inpaint_tab(models: Models, jobs: Jobs, sends: list[str]) -> Tab:
    """Parts of a picture painted anew, or changed."""
    with gr.Tab("Inpaint", id="Inpaint"), gr.Row():
        with gr.Column(scale=5, min_width=340):
            painting = make_painting("Picture and mask")
            run, cancel = make_buttons("Inpaint")
            settings = make_settings(models, models.painters, 4, "Any class")
            strength = gr.Slider(
                0, 1, value=1, step=0.05, label="Strength", info="1 paints anew; below, a sketch of what is there stays"
            )
        with gr.Column(scale=5, min_width=340):
            results = make_results(True, sends)
            add_examples("Inpaint", painting, settings)

    def inpaint(
        picture: Painted,
        model: str,
        class_name: str,
        seed: float,
        guidance: float,
        temperature: float,
        count: float,
        strength: float,
    ) -> Iterator[Values]:
        """Paints the masked part of a picture anew. Returns results, how they were made, and before and after.

        picture is {"background": file, "layers": [mask file], "composite": null}. The mask has the picture's size and
        marks what to paint by pixels that are not transparent, or where it has no alpha, by white ones. class_name is a
        name or number of the model's classes, or "any class". Below strength 1 a sketch of what is under the mask
        stays, and without a mask the whole picture is edited. Outside of the mask nothing changes.
        """
        ask = make_ask(model, class_name, seed, guidance, temperature, count)
        yield from told(
            lambda: jobs.inpaint(ask, *whole_painting(picture, strength), strength),
            results,
            f"inpainted-{name_of(ask.model)}-seed{ask.seed}",
        )

    connect(run, cancel, inpaint, [painting, *settings.inputs, strength], results)
    return Tab("Inpaint", settings, results, painting)


def outpaint_tab(models: Models, jobs: Jobs, sends: list[str]) -> Tab:
    """A picture continued beyond its sides."""
    with gr.Tab("Outpaint", id="Outpaint"), gr.Row():
        with gr.Column(scale=5, min_width=340):
            source = make_picture("Picture")
            with gr.Row():
                sides = [
                    gr.Number(32 * (name in ("Left", "Right")), label=name, precision=0, minimum=0, min_width=70)
                    for name in ("Left", "Top", "Right", "Bottom")
                ]
            run, cancel = make_buttons("Outpaint")
            settings = make_settings(models, models.painters, 2, "Any class")
        with gr.Column(scale=5, min_width=340):
            results = make_results(True, sends)
            add_examples("Outpaint", source, settings)

    def outpaint(
        picture: Image.Image | None,
        left: float,
        top: float,
        right: float,
        bottom: float,
        model: str,
        class_name: str,
        seed: float,
        guidance: float,
        temperature: float,
        count: float,
    ) -> Iterator[Values]:
        """Continues a picture beyond its sides. Returns results, how they were made, and before and after.

        left, top, right and bottom are pixels to add. class_name is a name or number of the model's classes, or
        "any class". The picture itself does not change.
        """
        ask = make_ask(model, class_name, seed, guidance, temperature, count)
        added = Sides(*(int(side or 0) for side in (left, top, right, bottom)))
        yield from told(
            lambda: jobs.outpaint(ask, given(picture), added),
            results,
            f"outpainted-{name_of(ask.model)}-seed{ask.seed}",
        )

    connect(run, cancel, outpaint, [source, *sides, *settings.inputs], results)
    return Tab("Outpaint", settings, results, source)


def upscale_tab(models: Models, jobs: Jobs, sends: list[str]) -> Tab:
    """A picture enlarged."""
    with gr.Tab("Upscale", id="Upscale"), gr.Row():
        with gr.Column(scale=5, min_width=340):
            source = make_picture("Picture")
            run, cancel = make_buttons("Upscale")
            with gr.Row():
                factor = gr.Number(4, label="Factor", precision=0, minimum=2, min_width=140)
                consistent = gr.Checkbox(
                    True, label="Consistent", info="reduced, it is the given picture", min_width=140
                )
            settings = make_settings(models, models.enlargers, 1, "Any class")
        with gr.Column(scale=5, min_width=340):
            results = make_results(True, sends)
            add_examples("Upscale", source, settings)

    def upscale(
        picture: Image.Image | None,
        factor: float,
        consistent: bool,
        model: str,
        class_name: str,
        seed: float,
        guidance: float,
        temperature: float,
        count: float,
    ) -> Iterator[Values]:
        """Enlarges a picture, in tiles where it is larger than the model's. Returns results, how, and before and after.

        factor is a whole number that the model can honour. consistent makes the result give the picture again when it
        is reduced. class_name is a name or number of the model's classes, or "any class". "Before" is a bicubic
        enlargement.
        """
        ask = make_ask(model, class_name, seed, guidance, temperature, count)
        yield from told(
            lambda: jobs.upscale(ask, given(picture), int(factor) if factor else None, consistent),
            results,
            f"upscaled-{name_of(ask.model)}-seed{ask.seed}",
        )

    connect(run, cancel, upscale, [source, factor, consistent, *settings.inputs], results)
    return Tab("Upscale", settings, results, source)


# What tabs share


def make_buttons(name: str) -> tuple[gr.Button, gr.Button]:
    """What starts a run, and what stops it."""
    with gr.Row():
        return gr.Button(name, variant="primary", scale=3), gr.Button("Cancel", scale=1, min_width=90)


def connect(
    run: gr.Button, cancel: gr.Button, function: Callable[..., Iterator[Values]], inputs: list[Any], results: Results
) -> None:
    """Runs a function from its button, as an endpoint of its name; a cancelled run ends after its current step."""
    event = run.click(
        function,
        inputs,
        results.outputs,
        api_name=function.__name__,
        concurrency_id="compute",
        concurrency_limit=WORKERS,
        show_progress="minimal",
        show_progress_on=results.status,
    )
    results.select_first_after(event)
    stopped = cancel.click(None, cancels=[event], api_visibility="private")
    stopped.then(lambda: "Cancelled.", None, results.status, **QUIET)


def told(begin: Callable[[], Generator[Update]], results: Results, name: str) -> Iterator[Values]:
    """What a run shows; closing it stops the run."""
    with readable_errors(), contextlib.closing(begin()) as updates:
        for update in updates:
            yield results.show(update, name)


def add_examples(tab: str, source: Any, settings: Settings) -> None:
    """Pictures to try a tab with; a click brings picture, mask, model and class."""
    examples = load_examples(tab, settings.names)
    if not examples:
        return
    shown = gr.Dataset(
        components=[gr.Image(visible=False, format="png")],
        samples=[[example.thumbnail()] for example in examples],
        type="index",
        label="Examples",
        samples_per_page=12,
    )

    def take(index: int) -> Values:
        example = examples[index]
        return [example.value(), *settings.of_model(example.model(settings.names) or "", example.class_name)]

    # the editor puts a mask in the place that its canvas had before; emptied, it has the size of the examples
    emptied = shown.click(lambda: None, None, source, **QUIET)
    emptied.then(take, shown, [source, *settings.of_models], **QUIET)


def whole_painting(picture: Painted, strength: float) -> tuple[Image.Image, np.ndarray]:
    """Picture and mask; below full strength no mask is the whole picture.

    Raises:
        ValueError: If there is no picture, or nothing to do.
    """
    image, mask = given(picture[0]), picture[1]
    if mask is None or not mask.any():
        if strength == 1:
            raise ValueError(
                "nothing is painted; brush over what is to be painted anew, or lower the strength to edit the whole."
            )
        mask = np.ones((image.height, image.width), dtype=bool)
    return image, mask


def given(picture: Image.Image | None) -> Image.Image:
    """The picture.

    Raises:
        ValueError: If there is none.
    """
    if picture is None:
        raise ValueError("there is no picture; upload or paste one, or take an example.")
    return picture


def name_of(model: str) -> str:
    """The model's name without its folders, for names of files."""
    return Path(model).name
