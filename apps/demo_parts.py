"""Components of the web demo's page: uploads that are read within limits, settings, results, and the looks.

Fonts are the system's: the page fetches nothing from elsewhere.
"""

from abc import ABCMeta
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from apps.demo_jobs import ANY_CLASS, MAX_RESULTS, Ask, Cancelled, Update
from apps.demo_models import Models
from apps.demo_uploads import read_mask, read_picture
from apps.errors import is_bad_input, one_line
from genaim.models import GeneratorConfig

BRUSH = "rgba(214, 51, 108, 0.5)"
MAX_SEED = 2**31 - 1
UNREAD_UPLOADS = 64  # edited pictures that a page has sent but no run has read yet
HEIGHT = 420
CANVAS = 128  # of an empty editor, by which it places the masks of examples
BRUSH_SIZE = 8
QUIET = {"api_visibility": "private", "show_progress": "hidden", "queue": False}

Painted = tuple[Image.Image | None, np.ndarray | None]
"""A picture, and where it is painted, (H, W) bool; None for what is not there."""
Paths = list[tuple[str, str | None]]
"""Files of a gallery, with their captions."""

THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)
CSS = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: 0 auto !important}
.picture img {width: 100%; height: 100%; object-fit: contain !important}
.compared .grid-wrap {min-height: 150px !important; height: auto !important}
.compared .grid-container {grid-template-columns: repeat(4, 1fr) !important}
.status {min-height: 44px; padding-top: 8px !important}
footer .divider {display: none !important}
"""


class Bug(gr.Error):
    """An error that is not the reader's: Gradio prints where it comes from."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Shows errors in the page, in one line; of bugs the terminal tells more, of bad input nothing."""
    try:
        yield
    except gr.Error:
        raise
    except Cancelled:
        raise gr.Error("The demo is being closed.", print_exception=False) from None
    except Exception as error:
        text = one_line(error)
        if not is_bad_input(error):
            raise Bug(f"internal error, {type(error).__name__}: {text}; the demo's terminal shows where.") from error
        raise gr.Error(text[:1].upper() + text[1:], print_exception=False) from None


class Page(gr.Blocks):
    """A page whose components refuse what does not fit them without a word in the terminal."""

    async def preprocess_data(self, *arguments: Any, **options: Any) -> list[Any]:
        """The values of an event's inputs, as its function takes them."""
        try:
            values: list[Any] = await super().preprocess_data(*arguments, **options)
        except Bug:
            raise
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception as error:  # of Gradio's components, which raise many types
            raise gr.Error(f"The request cannot be read: {one_line(error)[:300]}", print_exception=False) from None
        return values


class _Quiet(type(gr.Image)):  # type: ignore[misc]
    """Makes a component class without writing an interface file beside this one, as Gradio's own metaclass does."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attributes)


class Picture(gr.Image, metaclass=_Quiet):
    """A picture that is decoded within the limits, in its own mode."""

    is_template = True  # shown by the same script as its base

    def preprocess(self, payload: Any) -> Image.Image | None:
        """The picture, or None where there is none."""
        with readable_errors():
            return None if payload is None else read_picture(_sent(payload))


class Painting(gr.ImageEditor, metaclass=_Quiet):
    """A picture and what is painted over it, decoded within the limits."""

    is_template = True

    def preprocess(self, payload: Any) -> Painted:
        """What was sent.

        A page sends the two beforehand under an id, and they are dropped when they are read.
        """
        if payload is not None and payload.id is not None:
            payload = self.blob_storage.pop(payload.id, None)
        if payload is None:
            return None, None
        with readable_errors():
            layers = [read_mask(_sent(layer)) for layer in payload.layers[:1] if layer is not None]
            picture = None if payload.background is None else read_picture(_sent(payload.background))
        return picture, layers[0] if layers else None


class Recent(OrderedDict[str, Any]):
    """The last entries; older ones are forgotten, so that uploads that nobody reads cannot fill the memory."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Adds an entry and forgets the oldest beyond `UNREAD_UPLOADS`."""
        super().__setitem__(key, value)
        while len(self) > UNREAD_UPLOADS:
            self.popitem(last=False)


def _sent(part: Any) -> bytes | Path:
    """Bytes, or the path of an uploaded file, which Gradio has checked to be in its folder."""
    if isinstance(part, bytes):
        return part
    if part.path is None:
        raise ValueError("the picture was sent in the address; upload it as a file.")
    return Path(part.path)


def make_painting(label: str) -> gr.ImageEditor:
    """An editor in which one paints a mask."""
    painting = Painting(
        label=label,
        type="pil",
        image_mode="RGBA",
        format="png",
        sources=("upload", "clipboard"),
        layers=False,
        transforms=(),
        brush=gr.Brush(default_size=BRUSH_SIZE, colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
        eraser=gr.Eraser(),
        canvas_size=(CANVAS, CANVAS),
        height=HEIGHT + 80,
        buttons=["fullscreen"],
    )
    painting.blob_storage = Recent()
    return painting


def make_picture(label: str) -> gr.Image:
    """Where a picture is given."""
    return Picture(
        label=label,
        type="pil",
        image_mode=None,
        format="png",
        sources=("upload", "clipboard"),
        height=HEIGHT,
        elem_classes="picture",
    )


# Settings


@dataclass
class Settings:
    """The controls that all tabs have."""

    models: Models
    names: list[str]
    """Models that can be chosen."""
    model: gr.Dropdown
    class_name: gr.Dropdown
    seed: gr.Number
    guidance: gr.Slider
    temperature: gr.Slider
    count: gr.Slider
    any_class: str
    """How the open choice of a class is called."""

    @property
    def inputs(self) -> list[Any]:
        """In the order that `make_ask` takes."""
        return [self.model, self.class_name, self.seed, self.guidance, self.temperature, self.count]

    @property
    def of_models(self) -> list[Any]:
        """What `of_model` gives values for."""
        return [self.model, self.class_name, self.guidance, self.temperature]

    def of_model(self, name: str, class_name: str) -> list[Any]:
        """The values of model, class, guidance and temperature for a model."""
        config = self.models.configs[name]
        classes = gr.Dropdown(class_choices(config, self.any_class), value=class_name)
        return [name, classes, config.sampling.guidance_scale, config.sampling.temperature]


def make_ask(
    model: Any,
    class_name: Any,
    seed: float | None,
    guidance: float | None,
    temperature: float | None,
    count: float | None,
) -> Ask:
    """A request from the values of the controls, of which those of a list may be of any type."""
    name = None if class_name is None else str(class_name)
    return Ask(str(model), name, int(seed or 0), guidance, temperature, int(count or 1))


def make_settings(models: Models, names: list[str], count: int, any_class: str) -> Settings:
    """The controls, in rows; a change of the model brings its classes and defaults."""
    config = models.configs[names[0]]
    with gr.Row():
        model = gr.Dropdown(names, value=names[0], label="Model", min_width=140)
        class_name = gr.Dropdown(
            class_choices(config, any_class), value=ANY_CLASS, label="Class", allow_custom_value=True, min_width=140
        )
    with gr.Row():
        dice = gr.Button("⚄ random", size="sm")
        seed = gr.Number(0, label="Seed", precision=0, min_width=140, buttons=[dice])
        number = gr.Slider(1, MAX_RESULTS, value=count, step=1, label="Results", min_width=140)
    with gr.Row():
        guidance = gr.Slider(1, 10, value=config.sampling.guidance_scale, step=0.1, label="Guidance", min_width=140)
        temperature = gr.Slider(
            0, 1.5, value=config.sampling.temperature, step=0.05, label="Temperature", min_width=140
        )
    dice.click(None, None, seed, js=f"() => Math.floor(Math.random() * {MAX_SEED})", api_visibility="private")

    def follow(name: str) -> list[Any]:
        return settings.of_model(name, ANY_CLASS)[1:]

    settings = Settings(models, names, model, class_name, seed, guidance, temperature, number, any_class)
    model.input(follow, model, [class_name, guidance, temperature], **QUIET)
    return settings


def class_choices(config: GeneratorConfig, any_class: str) -> list[tuple[str, str]]:
    """What the class can be, as it is shown and as it is sent; the open choice first."""
    names = config.class_names or [str(number) for number in range(config.num_classes)]
    return [(any_class, ANY_CLASS), *((name, name) for name in names)]


# Results


@dataclass
class Results:
    """What a tab shows of a run."""

    status: gr.Markdown
    gallery: gr.Gallery
    slider: gr.ImageSlider
    """Before and after."""
    before: gr.State
    """File of the picture before."""
    selected: gr.State
    """Number of the result that is looked at."""
    download: gr.DownloadButton
    sends: dict[str, gr.Button]
    """Buttons that hand the selected result to a tab, by its name."""
    compares: bool
    """Whether there is a before."""

    def __post_init__(self) -> None:
        """Follows the reader's choice among the results."""
        self.gallery.select(self._pick, [self.gallery, self.before], self._followers, **QUIET)

    def select_first_after(self, event: Any) -> None:
        """Looks at the first result when a run has ended."""
        event.success(self._pick_first, [self.gallery, self.before], self._followers, **QUIET)

    @property
    def outputs(self) -> list[Any]:
        """In the order that `show` gives."""
        return [self.gallery, self.status, *[self.slider, self.before] * self.compares]

    def show(self, update: Update, name: str) -> list[Any]:
        """The values of the outputs for an update; results are files called ``name`` and a number."""
        pictures: Any = update.pictures or gr.skip()
        if update.done:
            folder = self.gallery.GRADIO_CACHE
            pictures = [
                save_pil_to_cache(picture, folder, name=f"{name}-{i}", format="png")
                for i, picture in enumerate(update.pictures)
            ]
        shown: list[Any] = [pictures, update.text]
        if not self.compares:
            return shown
        if not update.done or update.before is None:
            return [*shown, gr.skip(), gr.skip()]
        before = save_pil_to_cache(update.before, self.gallery.GRADIO_CACHE, name="before", format="png")
        return [*shown, (before, pictures[0]), before]

    @property
    def _followers(self) -> list[Any]:
        return [self.selected, self.download, self.slider, *self.sends.values()]

    def _pick_first(self, paths: Paths, before: str | None) -> list[Any]:
        return self._look(paths, before, 0)

    def _pick(self, paths: Paths, before: str | None, event: gr.SelectData) -> list[Any]:
        return self._look(paths, before, event.index)

    def _look(self, paths: Paths, before: str | None, number: int) -> list[Any]:
        path = paths[number][0]
        compared = gr.ImageSlider((before, path), visible=True) if before else gr.skip()
        ready = [gr.Button(interactive=True)] * len(self.sends)
        return [number, gr.DownloadButton(value=path, interactive=True), compared, *ready]


def make_results(compares: bool, sends: list[str]) -> Results:
    """The results of a tab: gallery, before and after, and what can be done with the selected one."""
    gallery = gr.Gallery(
        label="Results",
        show_label=False,
        type="filepath",
        format="png",
        columns=4,
        height="auto" if compares else HEIGHT,
        allow_preview=not compares,  # the slider is where one looks closely
        elem_classes="compared" if compares else None,
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
    )
    status = gr.Markdown("", elem_classes="status")
    slider = gr.ImageSlider(
        label="Before and after", type="filepath", format="png", visible="hidden", interactive=False, max_height=HEIGHT
    )
    with gr.Row():
        download = gr.DownloadButton("Download", size="sm", interactive=False, min_width=110)
        buttons = {name: gr.Button(f"Use in {name}", size="sm", interactive=False, min_width=110) for name in sends}
    return Results(status, gallery, slider, gr.State(), gr.State(0), download, buttons, compares)
