"""The web demo: a page of tabs over one set of models, served by Gradio. What the tabs run is the demo's API.

The page's components are in `apps.demo_parts`, what is computed in `apps.demo_jobs`.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: no word to anybody

import gradio as gr
import numpy as np
from PIL import Image

from apps.demo_examples import load_examples
from apps.demo_jobs import MAX_BYTES, Jobs, Models, Sides, Update, bundled_generators
from apps.demo_parts import (
    CSS,
    QUIET,
    THEME,
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
from genaim.core.hardware import pick_device

WORKERS = 2  # requests computed at once
MAX_WAITING = 64  # requests in the queue; more are told to come again
MAX_SESSIONS = 500  # whose state is remembered
KEEP_SECONDS = 24 * 3600  # files are removed when they are older, and all when the demo ends
LOOK_SECONDS = 1800
INTRODUCTION = """# genaim
Draw, complete and continue pictures with autoregressive models. Everything runs on this machine."""

Values = list[Any]
"""Values of a run's outputs: gallery, status, and where there is one, before and after."""


@dataclass
class Tab:
    """What the page knows of a tab."""

    name: str
    results: Results
    source: gr.components.Component | None = None
    """Where a picture is given."""


def serve(names: Sequence[str] = (), host: str = "127.0.0.1", port: int | None = None, device: str = "auto") -> None:
    """Serves the demo until it is interrupted.

    Args:
        names: Models to offer; none takes all bundled generators.
        host: Address to listen at; 0.0.0.0 is every network that the machine is in.
        port: Port to listen at; None takes a free one from 7860 on.
        device: auto, cpu, cuda or mps.

    Raises:
        ValueError: If a model cannot be found, or the device is not there.
        OSError: If the port is taken.
    """
    models = Models(list(names) or bundled_generators(), pick_device(device))
    with tempfile.TemporaryDirectory(prefix="genaim-demo-") as folder:
        page = start(models, folder, host, port)
        print(f"genaim demo at {page.local_url}  (Ctrl+C ends it)", flush=True)
        try:
            page.block_thread()
        finally:
            page.jobs.close()


def start(models: Models, folder: str, host: str = "127.0.0.1", port: int | None = None) -> gr.Blocks:
    """Starts the server in the background.

    Args:
        models: What to offer.
        folder: Where uploads and results are kept: the only files that the server hands out.
        host: Address to listen at.
        port: As in `serve`.

    Returns:
        The page, with ``local_url``, ``jobs`` and ``close()``.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder  # components read it when they are made
    jobs = Jobs(models, WORKERS)
    page = make_page(models, jobs)
    page.jobs = jobs
    page.queue(max_size=MAX_WAITING, api_open=False)  # not open: nothing gets round the queue
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        show_error=True,
        allowed_paths=[],
        max_file_size=MAX_BYTES,
        state_session_capacity=MAX_SESSIONS,
        theme=THEME,
        css=CSS,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
    return page


def make_page(models: Models, jobs: Jobs) -> gr.Blocks:
    """The page."""
    with gr.Blocks(
        title="genaim", analytics_enabled=False, fill_width=True, delete_cache=(LOOK_SECONDS, KEEP_SECONDS)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs() as tabs:
            made = [make(models, jobs) for make in (generate_tab, inpaint_tab, outpaint_tab)]
        sources = {tab.name: tab.source for tab in made}
        for tab in made:
            for name, button in tab.results.sends.items():
                hand_over(button, tab.results, tabs, name, sources[name])
    return page


# Tabs


def generate_tab(models: Models, jobs: Jobs) -> Tab:
    """New pictures."""
    with gr.Tab("Generate", id="Generate"), gr.Row():
        with gr.Column(scale=4, min_width=340):
            settings = make_settings(models, list(models.names), 8, "All classes in turn")
            run, cancel = make_buttons("Generate")
        with gr.Column(scale=6, min_width=340):
            results = make_results(False, ["Inpaint", "Outpaint"])

    def generate(
        model: str, class_name: str, seed: float, guidance: float, temperature: float, count: float
    ) -> Iterator[Values]:
        """Draws new pictures. Returns the gallery of results, and a line that says how they were made.

        class_name is a name or number of the model's classes; "any class" takes all of them in turn. Result i of a
        seed is always the same picture.
        """
        ask = make_ask(model, class_name, seed, guidance, temperature, count)
        yield from told(lambda: jobs.generate(ask), results, f"{name_of(model)}-seed{ask.seed}")

    connect(run, cancel, generate, settings.inputs, results)
    return Tab("Generate", results)


def inpaint_tab(models: Models, jobs: Jobs) -> Tab:
    """Parts of a picture painted anew, or changed."""
    with gr.Tab("Inpaint", id="Inpaint"), gr.Row():
        with gr.Column(scale=5, min_width=340):
            painting = make_painting("Picture and mask")
            run, cancel = make_buttons("Inpaint")
            settings = make_settings(models, list(models.names), 4, "Any class")
            strength = gr.Slider(
                0, 1, value=1, step=0.05, label="Strength", info="1 paints anew; below, a sketch of what is there stays"
            )
        with gr.Column(scale=5, min_width=340):
            results = make_results(True, ["Inpaint", "Outpaint"])
            add_examples("Inpaint", models, painting, settings)

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
            f"inpainted-{name_of(model)}-seed{ask.seed}",
        )

    connect(run, cancel, inpaint, [painting, *settings.inputs, strength], results)
    return Tab("Inpaint", results, painting)


def outpaint_tab(models: Models, jobs: Jobs) -> Tab:
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
            settings = make_settings(models, list(models.names), 2, "Any class")
        with gr.Column(scale=5, min_width=340):
            results = make_results(True, ["Inpaint", "Outpaint"])
            add_examples("Outpaint", models, source, settings)

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
            lambda: jobs.outpaint(ask, given(picture), added), results, f"outpainted-{name_of(model)}-seed{ask.seed}"
        )

    connect(run, cancel, outpaint, [source, *sides, *settings.inputs], results)
    return Tab("Outpaint", results, source)


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


def hand_over(button: gr.Button, results: Results, tabs: gr.Tabs, name: str, source: Any) -> None:
    """Makes a button give the selected result to a tab."""

    def give(paths: list[Any], number: int) -> Values:
        with readable_errors():
            if not paths:
                raise ValueError("there is no result yet.")
        return [gr.Tabs(selected=name), paths[min(number, len(paths) - 1)][0]]

    button.click(give, [results.gallery, results.selected], [tabs, source], **QUIET)


def add_examples(tab: str, models: Models, source: Any, settings: Settings) -> None:
    """Pictures to try a tab with; a click brings picture, mask, model and class."""
    examples = load_examples(tab, models)
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
        return [example.value(), *settings.of_model(example.model, example.class_name)]

    controls = [settings.model, settings.class_name, settings.guidance, settings.temperature]
    # the editor puts a mask in the place that its canvas had before; emptied, it has the size of the examples
    emptied = shown.click(lambda: None, None, source, **QUIET)
    emptied.then(take, shown, [source, *controls], **QUIET)


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
