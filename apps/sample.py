"""`genaim sample`: pictures of a model, with a record that repeats them."""

import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import safetensors
import torch
from PIL import Image

import genaim
from apps.folders import RECORD, RECORD_FORMAT, check_replaceable, hash_file, read_record, written_whole
from apps.progress import make_progress
from apps.request import (
    SampleRequest,
    Settings,
    command_line,
    resolve,
    sampling_arguments,
    sampling_in_words,
    shortest_turn,
)
from genaim.core.hardware import pick_device, pick_dtype
from genaim.core.order import Step
from genaim.core.progress import Progress
from genaim.data.grid import contact_sheet
from genaim.data.transforms import tensor_to_pil
from genaim.models import GenerativeModel
from genaim.pretrained import load_generator
from genaim.tokenizers import fingerprint
from samplers.generate import generate_batches
from samplers.prepare import prepare

SAMPLES = Path("samples")
SHEET_IMAGES = 256
SHEET_SIDE, SHEET_WIDTH = 128, 1200  # small images are enlarged up to these


@dataclass(frozen=True)
class Loaded:
    """A model on its device, ready to sample."""

    model: GenerativeModel
    weights: str
    """Fingerprint of its weights."""
    dtype: torch.dtype
    """Number format of matrix products."""
    seconds: float
    """That loading took."""


def sample(request: SampleRequest, out: Path | None = None, *, compiled: bool = False) -> Path:
    """Generates images and writes them with their contact sheet and record.

    Args:
        request: What is asked for, checked.
        out: Folder to write, which loses nothing by it (`check_replaceable`); None takes a free one under ``samples``.
        compiled: Whether to use `torch.compile`.

    Returns:
        The folder.

    Raises:
        ValueError: If the request does not fit the model, or ``out`` holds other files.
        OSError: If the folder cannot be written; then nothing of it remains.
    """
    progress = make_progress(sys.stderr)
    loaded = load_for(request, progress, compiled=compiled)
    model, dtype = loaded.model, loaded.dtype
    if request.weights not in (None, loaded.weights):
        raise ValueError(
            f"model '{request.model}' has weights {loaded.weights}, but the record was made with {request.weights}."
        )
    if model.config.low_res is not None:
        raise ValueError(f"model '{request.model}' enlarges pictures and draws none by itself; use genaim upscale.")
    settings = resolve(request, model.config, loaded.weights, model.device, dtype)
    folder = out or free_folder(settings)
    with written_whole(folder) as temporary:
        progress.say(introduction(settings))
        began, files, shown = time.perf_counter(), {}, []
        for index, image in enumerate(draw(model, settings, dtype, progress)):
            path = temporary / f"{index:05d}.png"
            image.save(path)
            files[path.name] = hash_file(path)
            if index < SHEET_IMAGES:
                shown.append(image)
        seconds = time.perf_counter() - began
        sheet(shown, settings).save(temporary / "sheet.png")
        files["sheet.png"] = hash_file(temporary / "sheet.png")
        record = make_record(settings, files, {"load": round(loaded.seconds, 3), "sample": round(seconds, 3)})
        record["machine"]["compiled"] = compiled
        write_record(temporary / RECORD, record)
    return folder


def load_for(request: SampleRequest, progress: Progress, *, compiled: bool = False) -> Loaded:
    """The model of a request, ready to sample."""
    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device)
    began = time.perf_counter()
    model = load_generator(request.model, device=device, progress=progress)
    weights = fingerprint(model)
    reason = prepare(model, dtype, compiled=compiled)
    if reason is not None:
        progress.say(f"note: nothing is compiled, since this fails here: {reason}")
    elif compiled:
        progress.say("compiling: the first batch takes up to some minutes, those after it less")
    return Loaded(model, weights, dtype, time.perf_counter() - began)


def draw(model: GenerativeModel, settings: Settings, dtype: torch.dtype, progress: Progress) -> Iterator[Image.Image]:
    """The images in order, as they are finished."""
    labels = torch.tensor(settings["labels"] or [0] * settings["count"])  # without classes, 0 is the null class
    batches = math.ceil(len(labels) / settings["batch_size"])
    done = 0

    def on_step(step: Step, tokens: torch.Tensor) -> None:
        nonlocal done
        if done == 0:
            progress.start("sampling", 0, batches * step.total)
        done += 1
        progress.advance(done, {})

    sampling = sampling_arguments(settings, dtype)
    sampling |= {"batch_size": settings["batch_size"], "on_step": on_step}
    try:
        for images in generate_batches(model, labels, **sampling):
            yield from tensor_to_pil(images)
    finally:
        progress.stop()


# Records


def make_record(settings: Settings, files: dict[str, str], seconds: dict[str, float]) -> dict[str, Any]:
    """What ``record.json`` holds."""
    return {
        "format": RECORD_FORMAT,
        "command": command_line(settings),
        "settings": settings,
        "seconds": seconds,
        "libraries": libraries(),
        "machine": machine(settings["device"]),
        "files": files,
    }


def libraries() -> dict[str, str]:
    """Versions of what computes the numbers of a record."""
    return {
        "genaim": genaim.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "safetensors": safetensors.__version__,
    }


def machine(device: str) -> dict[str, Any]:
    """What a record says of the machine, where ``device`` computed."""
    return {"platform": platform.platform(), "processor": processor(device), "threads": torch.get_num_threads()}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, a line for each of its parts."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def compared(folder: Path, record: dict[str, Any]) -> str:
    """Says how the pictures of a folder agree with those of an earlier record."""
    before, now = (pictures(files) for files in (record["files"], read_record(folder / RECORD)["files"]))
    same = sum(now.get(name) == digest for name, digest in before.items())
    hint = "" if same == len(before) else "; another machine, library, device or --compile rounds differently"
    return f"{same} of {len(before)} pictures are identical to the record's{hint}"


def pictures(files: dict[str, str]) -> dict[str, str]:
    """The entries of the numbered images."""
    return {name: digest for name, digest in files.items() if name != "sheet.png"}


def processor(device: str) -> str:
    """The name of what computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def free_folder(settings: Settings, what: str | None = None) -> Path:
    """``samples/MODEL-seedSEED`` (or ``what`` for MODEL); with a number behind if that holds another sampling."""
    name = f"{what or Path(settings['model']).name}-seed{settings['seed']}"
    for number in count(1):
        folder = SAMPLES / (name if number == 1 else f"{name}-{number}")
        try:
            check_replaceable(folder)
        except ValueError:
            continue
        record = folder / RECORD
        if not record.exists() or read_record(record)["settings"] == settings:
            return folder
    raise AssertionError("unreachable")


# Display


def introduction(settings: Settings) -> str:
    """One line that tells what will be drawn, and how."""
    images = f"{settings['count']} image{'s' * (settings['count'] != 1)}"
    return (
        f"{Path(settings['model']).name}: {images}, seed {settings['seed']}, "
        f"{sampling_in_words(settings)}, on {settings['device']} in {settings['dtype']}"
    )


def sheet(images: Sequence[Image.Image], settings: Settings) -> Image.Image:
    """The contact sheet, with a column for each class where few come in turn."""
    turn = len(shortest_turn(settings["labels"] or [0]))
    columns = 8 if len(images) <= 64 else 16
    if 4 <= turn <= 16 and len(images) >= 2 * turn:
        columns = turn
    side = min(SHEET_SIDE, SHEET_WIDTH // columns)
    return contact_sheet(images, columns=columns, scale=max(1, side // images[0].width))
