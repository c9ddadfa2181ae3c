"""The web demo: a page of tabs over one set of models, served by Gradio. What the tabs run is the demo's API.

The tabs are in `apps.demo_tabs`, their components in `apps.demo_parts`, what they compute in `apps.demo_jobs`.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: no word to anybody

import gradio as gr

from apps.demo_jobs import WORKERS, Jobs
from apps.demo_models import Models, offered_generators
from apps.demo_parts import CSS, QUIET, THEME, Page, readable_errors
from apps.demo_tabs import Tab, generate_tab, inpaint_tab, outpaint_tab, upscale_tab
from apps.demo_uploads import MAX_BYTES
from genaim.core.hardware import pick_device

MAX_WAITING = 64  # requests in the queue; more are told to come again
MAX_SESSIONS = 500  # whose state is remembered
KEEP_SECONDS = 24 * 3600  # files are removed when they are older, and all when the demo ends
LOOK_SECONDS = 1800
INTRODUCTION = """# genaim
Draw, complete, continue and enlarge pictures with autoregressive models. Everything runs on this machine."""


def serve(names: Sequence[str] = (), host: str = "127.0.0.1", port: int | None = None, device: str = "auto") -> None:
    """Serves the demo until it is interrupted.

    Args:
        names: Models to offer; none takes all bundled generators.
        host: Address to listen at; 0.0.0.0 is every network that the machine is in.
        port: Port to listen at; None takes a free one from 7860 on.
        device: auto, cpu, cuda or mps.

    Raises:
        ValueError: If a model cannot be found, or the device is not there.
        OSError: If the port is in use, or all of those from 7860 on are.
    """
    models = Models(list(names) or offered_generators(), pick_device(device))
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
    """The page, with the tabs that the models can serve."""
    sends = [*["Inpaint", "Outpaint"] * bool(models.painters), *["Upscale"] * bool(models.enlargers)]
    with Page(
        title="genaim", analytics_enabled=False, fill_width=True, delete_cache=(LOOK_SECONDS, KEEP_SECONDS)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tabs() as shown:
            makers = [generate_tab, inpaint_tab, outpaint_tab] if models.painters else []
            makers += [upscale_tab] if models.enlargers else []
            tabs = [make(models, jobs, sends) for make in makers]
        for giver in tabs:
            for taker in tabs:
                if taker.source is not None:
                    hand_over(giver, taker, shown)
    return page


def hand_over(giver: Tab, taker: Tab, shown: gr.Tabs) -> None:
    """Makes a button of a tab give its selected result to another tab, or to itself, with its model."""
    results, settings = giver.results, giver.settings

    def give(paths: list[Any], number: int, model: str, class_name: str) -> list[Any]:
        with readable_errors():
            if not paths:
                raise ValueError("there is no result yet.")
        chosen = taker.settings.of_model(model, class_name) if model in taker.settings.names else [gr.skip()] * 4
        return [gr.Tabs(selected=taker.name), paths[min(number, len(paths) - 1)][0], *chosen]

    inputs = [results.gallery, results.selected, settings.model, settings.class_name]
    outputs = [shown, taker.source, *taker.settings.of_models]
    results.sends[taker.name].click(give, inputs, outputs, **QUIET)
