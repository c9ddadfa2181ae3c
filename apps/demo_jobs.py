"""What the web demo computes, without its page: jobs that tell every step and can be stopped between steps.

Each request has its own state and noise; requests share the weights, which nothing writes.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apps.demo_models import Models
from apps.demo_uploads import MAX_PIXELS, check_pixels
from apps.paint import FIRST_TILE
from genaim.core.order import Step
from genaim.data.transforms import tensor_to_pil
from genaim.models import GenerativeModel, GeneratorConfig
from samplers.decode import StepCallback
from samplers.generate import Sampling, generate
from samplers.inpaint import inpaint, outpaint
from samplers.labels import class_numbers
from samplers.preview import preview
from samplers.super_resolve import check_factor, super_resolve

WORKERS = 2  # requests computed at once
MAX_TOTAL_PIXELS = 4 * MAX_PIXELS  # of the results of a request
MAX_RESULTS = 16
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

    def sampling(
        self, config: GeneratorConfig, dtype: torch.dtype, on_step: StepCallback, in_turn: bool = False
    ) -> Sampling:
        """The arguments of a sampler; guidance is left out where there is no class to be guided to."""
        guided = config.num_classes and (in_turn or self.label(config) is not None)
        return {
            "seed": self.seed,
            "options": config.sampling.options(temperature=self.temperature),
            "guidance_scale": self.guidance if guided else None,
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
            sampling = ask.sampling(config, self.models.dtype, show_steps(model, report), in_turn=True)
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

        return self._run(ask, work, in_turn=False)

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

        return self._run(ask, work, in_turn=False)

    def upscale(
        self, ask: Ask, picture: Image.Image, factor: int | None = None, consistent: bool = True
    ) -> Generator[Update]:
        """The picture enlarged; None is the model's own factor."""

        def work(report: Report) -> Update:
            model = self.models.load(ask.model)
            times = check_factor(model, factor)
            ask.check(picture.width * picture.height * times**2)
            sampling = ask.sampling(model.config, self.models.dtype, show_steps(model, report))
            label = ask.label(model.config)
            results = [
                super_resolve(
                    model, picture, times, label, first_index=i * FIRST_TILE, consistent=consistent, **sampling
                )
                for i in range(ask.count)
            ]
            return Update("", results, picture.resize(results[0].size, Image.Resampling.BICUBIC))

        return self._run(ask, work, in_turn=False)

    def _run(self, ask: Ask, work: Callable[[Report], Update], in_turn: bool = True) -> Generator[Update]:
        """Runs work; ``in_turn`` says that an open class is each of them in turn, and not none."""
        began = time.perf_counter()
        for update in self.stepwise(work):
            if update.done:
                text = f"{summary(ask, self.models.configs[ask.model], in_turn)} · {time.perf_counter() - began:.1f} s"
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


def summary(ask: Ask, config: GeneratorConfig, in_turn: bool) -> str:
    """What repeats a request, in words."""
    label, defaults = ask.label(config), config.sampling
    named = None if label is None else config.class_names[label] if config.class_names else str(label)
    guidance = defaults.guidance_scale if ask.guidance is None else ask.guidance
    temperature = defaults.temperature if ask.temperature is None else ask.temperature
    parts = [Path(ask.model).name, named, f"seed {ask.seed}"]
    guided = config.num_classes and (in_turn or label is not None)
    parts += [f"guidance {guidance:g}" if guided else None, f"temperature {temperature:g}"]
    return " · ".join(part for part in parts if part)


def on_ground(picture: Image.Image, size: tuple[int, int], sides: Sides) -> Image.Image:
    """A picture with its new surroundings still grey."""
    ground = Image.new("RGB", size, GROUND)
    ground.paste(picture.convert("RGB"), (sides.left, sides.top), picture if "A" in picture.mode else None)
    return ground
