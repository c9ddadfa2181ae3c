"""What the web demo computes, without its page: models loaded once, limits, and jobs that tell every step.

Each request has its own state and noise; requests share the weights, which nothing writes.
"""

import io
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from apps.progress import make_progress
from genaim.config import nearest, validate
from genaim.core.hardware import pick_device, pick_dtype
from genaim.core.order import Step
from genaim.data.transforms import open_image, tensor_to_pil
from genaim.models import MODELS, GenerativeModel, GeneratorConfig
from genaim.pretrained import bundled, find, load_generator
from genaim.pretrained.store import read_config
from samplers.canvas import editable
from samplers.decode import StepCallback
from samplers.generate import Sampling, generate
from samplers.inpaint import inpaint, outpaint
from samplers.labels import class_numbers
from samplers.preview import preview

MAX_BYTES = 20 * 2**20  # of an uploaded file
MAX_PIXELS = 2048 * 2048  # of a picture
MAX_TOTAL_PIXELS = 4 * MAX_PIXELS  # of the results of a request
MAX_RESULTS = 16
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MASK_ALPHA = 16  # of 255; fainter traces, as an eraser leaves them, are not painted
ANY_CLASS = "any class"
GROUND = (226, 232, 240)  # what is not painted yet
FEW_STEPS, SECONDS_APART = 16, 0.15  # up to so many steps, all are shown; of more, one after so many seconds

Pictures = list[Image.Image]


class Cancelled(Exception):
    """The request was given up."""


@dataclass(frozen=True)
class Update:
    """How far a request is."""

    text: str
    """A line for the reader."""
    pictures: Pictures
    """The results, or what can be seen of them so far."""
    before: Image.Image | None = None
    """What to compare the results with, of their size."""
    done: bool = False
    """Whether these are the results."""


Report = Callable[[Update], None]


@dataclass(frozen=True)
class Ask:
    """What all requests have in common; None takes the model's own value."""

    model: str
    """Name among those that are served."""
    class_name: str | None = None
    """Class by name or number; None or `ANY_CLASS` leaves it open."""
    seed: int = 0
    """Seed of all results."""
    guidance: float | None = None
    """1.0 is off."""
    temperature: float | None = None
    """Below 1 prefers likely tokens."""
    count: int = 1
    """Number of results."""

    def check(self, pixels: int) -> None:
        """Raises ValueError unless so many results of ``pixels`` pixels each may be asked for."""
        if not 1 <= self.count <= MAX_RESULTS:
            raise ValueError(f"{self.count} results were asked for; ask for 1 to {MAX_RESULTS}.")
        check_pixels(pixels)
        if self.count * pixels > MAX_TOTAL_PIXELS:
            raise ValueError(
                f"{self.count} results of {pixels / 1e6:.1f} million pixels each are too many; ask for "
                f"{MAX_TOTAL_PIXELS // pixels} or fewer."
            )

    def label(self, config: GeneratorConfig) -> int | None:
        """Number of the class, or None where it is left open.

        Raises:
            ValueError: If the model has no such class, or more than one is given.
        """
        if self.class_name in (None, "", ANY_CLASS):
            return None
        assert self.class_name is not None
        if not config.num_classes:
            raise ValueError(f"model '{self.model}' has no classes; choose '{ANY_CLASS}'.")
        numbers = class_numbers([self.class_name], config)
        if len(numbers) != 1:
            raise ValueError(f"'{self.class_name}' names {len(numbers)} classes; give one.")
        return numbers[0]

    def sampling(self, config: GeneratorConfig, dtype: torch.dtype, on_step: StepCallback) -> Sampling:
        """The arguments of a sampler."""
        return {
            "seed": self.seed,
            "options": config.sampling.options(temperature=self.temperature),
            "guidance_scale": self.guidance if config.num_classes else None,
            "dtype": dtype,
            "on_step": on_step,
        }


@dataclass(frozen=True)
class Sides:
    """Pixels to add to a picture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass
class Models:
    """The models that are served; each is loaded when it is first used, and shared."""

    names: Sequence[str]
    """Bundled or official models, model folders or run folders."""
    device: torch.device = field(default_factory=lambda: pick_device("auto"))
    """Where they compute."""
    configs: dict[str, GeneratorConfig] = field(init=False)
    """Their configs, read without their weights."""

    def __post_init__(self) -> None:
        """Reads the configs.

        Raises:
            ValueError: If a model cannot be found, or is no generator.
        """
        self.configs = {name: read_generator_config(name) for name in self.names}
        self.dtype = pick_dtype("auto", self.device)
        self._loaded: dict[str, GenerativeModel] = {}
        self._lock = threading.Lock()

    def load(self, name: str) -> GenerativeModel:
        """A model by its name.

        Raises:
            ValueError: If it is not served.
        """
        if name not in self.configs:
            raise ValueError(f"model '{name}' is not served here; {nearest(name, self.configs)}.")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_generator(name, device=self.device)
        return self._loaded[name]


def bundled_generators() -> list[str]:
    """Names of the generators that come with the package."""
    return [name for name, folder in bundled().items() if read_config(folder)["kind"] == "generator"]


def read_generator_config(name: str) -> GeneratorConfig:
    """The config of a generator by a name or folder that `find` takes.

    Raises:
        ValueError: If it cannot be found or read, or is no generator.
    """
    folder = find(name, make_progress(sys.stderr))
    config = read_config(folder)
    if config["kind"] != "generator":
        raise ValueError(f"'{name}' is no generator but a model of kind {config['kind']}; serve a generator.")
    kind: Any = config["model"].get("kind")
    if kind not in MODELS:
        raise ValueError(f"{folder}: unknown model kind {kind!r}; {nearest(str(kind), MODELS)}.")
    generator: GeneratorConfig = validate(MODELS[kind][0], config["model"], str(folder))
    return generator


class Jobs:
    """Runs requests, at most ``workers`` at once; closing a request's iterator stops it after its current step."""

    def __init__(self, models: Models, workers: int) -> None:
        """Starts no thread yet."""
        self.models = models
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="genaim-job")
        self._closed = threading.Event()

    def close(self) -> None:
        """Stops all requests after their current step."""
        self._closed.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def generate(self, ask: Ask) -> Generator[Update]:
        """New pictures: of one class, or of all classes in turn."""

        def work(report: Report) -> Update:
            model = self.models.load(ask.model)
            config = model.config
            ask.check(model.tokenizer.image_size**2)
            chosen, classes = ask.label(config), max(1, config.num_classes)
            labels = torch.tensor([i % classes if chosen is None else chosen for i in range(ask.count)])
            sampling = ask.sampling(config, self.models.dtype, show_steps(model, report))
            images = generate(model, labels, **sampling)
            return Update("", tensor_to_pil(images))

        return self._run(ask, work)

    def inpaint(self, ask: Ask, picture: Image.Image, mask: np.ndarray, strength: float = 1.0) -> Generator[Update]:
        """The picture with its masked part (H, W) painted anew, or below strength 1 changed."""

        def work(report: Report) -> Update:
            model = self.models.load(ask.model)
            ask.check(picture.width * picture.height)
            sampling = ask.sampling(model.config, self.models.dtype, show_steps(model, report))
            label = ask.label(model.config)
            results = inpaint(model, picture, mask, label, n=ask.count, strength=strength, **sampling)
            return Update("", results, picture)

        return self._run(ask, work)

    def outpaint(self, ask: Ask, picture: Image.Image, sides: Sides) -> Generator[Update]:
        """The picture continued beyond its sides."""

        def work(report: Report) -> Update:
            model = self.models.load(ask.model)
            width, height = picture.width + sides.left + sides.right, picture.height + sides.top + sides.bottom
            ask.check(max(width, 1) * max(height, 1))
            sampling = ask.sampling(model.config, self.models.dtype, show_steps(model, report))
            label = ask.label(model.config)
            results = outpaint(model, picture, label, n=ask.count, **vars(sides), **sampling)
            return Update("", results, on_ground(picture, results[0].size, sides))

        return self._run(ask, work)

    def _run(self, ask: Ask, work: Callable[[Report], Update]) -> Generator[Update]:
        began = time.perf_counter()
        for update in self.stepwise(work):
            if update.done:
                text = f"{summary(ask, self.models.configs[ask.model])} · {time.perf_counter() - began:.1f} s"
                update = Update(text, update.pictures, update.before, done=True)
            yield update

    def stepwise(self, work: Callable[[Report], Update]) -> Generator[Update]:
        """Runs work in a thread and yields what it reports, and at last, as done, what it returns.

        Closing the iterator makes the next report raise `Cancelled` in the thread; nobody waits for it.
        """
        updates: queue.SimpleQueue[Update | None] = queue.SimpleQueue()
        stop = threading.Event()

        def report(update: Update) -> None:
            if stop.is_set() or self._closed.is_set():
                raise Cancelled
            updates.put(update)

        def run() -> Update:
            try:
                return work(report)
            finally:
                updates.put(None)

        future = self._executor.submit(run)
        try:
            while (update := updates.get()) is not None:
                yield update
            result = future.result()
            yield Update(result.text, result.pictures, result.before, done=True)
        finally:
            stop.set()
            future.cancel()


def show_steps(model: GenerativeModel, report: Report) -> StepCallback:
    """A callback that reports what can be seen after a step."""
    passes, shown = 0, float("-inf")

    def on_step(step: Step, tokens: Tensor) -> None:
        nonlocal passes, shown
        passes += step.number == 0
        now = time.perf_counter()
        pictures: Pictures = []
        if step.total <= FEW_STEPS or now - shown >= SECONDS_APART:
            shown = now
            pictures = tensor_to_pil(preview(model, step, tokens))
        part = f"Part {passes}, step" if passes > 1 else "Step"
        report(Update(f"{part} {step.number + 1} of {step.total}", pictures))

    return on_step


def summary(ask: Ask, config: GeneratorConfig) -> str:
    """What repeats a request, in words."""
    label, defaults = ask.label(config), config.sampling
    named = None if label is None else config.class_names[label] if config.class_names else str(label)
    guidance = defaults.guidance_scale if ask.guidance is None else ask.guidance
    temperature = defaults.temperature if ask.temperature is None else ask.temperature
    parts = [Path(ask.model).name, named, f"seed {ask.seed}"]
    parts += [f"guidance {guidance:g}" if config.num_classes else None, f"temperature {temperature:g}"]
    return " · ".join(part for part in parts if part)


def on_ground(picture: Image.Image, size: tuple[int, int], sides: Sides) -> Image.Image:
    """A picture with its new surroundings still grey."""
    ground = Image.new("RGB", size, GROUND)
    ground.paste(picture.convert("RGB"), (sides.left, sides.top), picture if "A" in picture.mode else None)
    return ground


# What people send


def check_pixels(pixels: int) -> None:
    """Raises ValueError if a picture is too large to be worked on."""
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"the picture has {pixels / 1e6:.1f} million pixels; at most {MAX_PIXELS / 1e6:.1f} million (2048x2048) "
            "are allowed."
        )


def read_picture(source: bytes | Path) -> Image.Image:
    """A picture that was sent, upright, in a mode that PNG files and painting know.

    Raises:
        ValueError: If it is too large, in no allowed format, broken, animated, or has more than 8 bits a channel.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size / 2**20:.1f} MB; at most {MAX_BYTES // 2**20} MB are allowed.")
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            pixels = header.width * header.height
    except UnidentifiedImageError:
        raise ValueError(f"the file is no picture; give one of {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the picture is too large; at most {MAX_PIXELS / 1e6:.1f} million pixels.") from None
    check_pixels(pixels)
    try:
        image = open_image(data)
    except Exception as error:  # Pillow's plugins raise many types
        raise ValueError(f"the picture is broken: {error}.") from None
    image = editable(image)
    return image.convert("RGB") if image.mode == "CMYK" else image


def read_mask(source: bytes | Path) -> np.ndarray:
    """What is painted on a layer, (H, W) bool: where it is not transparent; without alpha, where it is white.

    Raises:
        ValueError: As `read_picture`.
    """
    layer = read_picture(source)
    if "A" in layer.mode:
        return np.asarray(layer.getchannel("A")) >= MASK_ALPHA
    return np.asarray(layer.convert("L")) >= 128
