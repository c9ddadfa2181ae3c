"""`genaim inpaint`, `outpaint`, `edit`, `upscale`: pictures changed by a model, with a record that repeats it."""

import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from apps.folders import RECORD, hash_file, written_whole
from apps.progress import make_progress
from apps.request import PaintRequest, Settings, command_line, parse_box, resolve, sampling_arguments
from apps.sample import Loaded, free_folder, introduction, load_for, make_record, write_record
from genaim.core.order import Step
from genaim.core.progress import Progress
from genaim.data.grid import contact_sheet
from genaim.data.transforms import open_image, to_rgb
from genaim.evaluation.inpainting import diversity
from genaim.evaluation.upscaling import consistency_error
from genaim.models import GenerativeModel
from samplers.canvas import check_depth, editable, to_pixels
from samplers.decode import StepCallback
from samplers.generate import Sampling
from samplers.inpaint import Mask, count_pieces, edit, extend, guidance_of, inpaint, outpaint, to_hidden
from samplers.labels import class_numbers
from samplers.super_resolve import check_factor, super_resolve

HIDDEN_COLOUR = (255, 0, 255)  # of what is to be painted, on the sheet
FIRST_TILE = 1 << 20  # the noise of another upscaled result begins with this image
THUMBNAIL = 256  # pictures on the sheet are at most so large, and enlarged up to about half of it


def paint(request: PaintRequest, out: Path | None = None) -> Path:
    """Changes a picture and writes the results with their contact sheet and record.

    Args:
        request: What is asked for, checked.
        out: Folder to write, which loses nothing by it (`check_replaceable`); None takes a free one under ``samples``.

    Returns:
        The folder.

    Raises:
        ValueError: If the request fits neither picture nor model, or ``out`` holds other files.
        OSError: If a file cannot be read or the folder cannot be written; then nothing of it remains.
    """
    image = read_picture(request.image)
    mask = read_mask(request, image)
    progress = make_progress(sys.stderr)
    loaded = load_for(request.sampling, progress)
    model, dtype = loaded.model, loaded.dtype
    settings = paint_settings(request, loaded)
    folder = out or free_folder(settings, f"{request.image.stem}-{request.task}")
    with written_whole(folder) as temporary:
        progress.say(f"{request.task} {request.image.name}: {introduction(settings)}")
        began, files = time.perf_counter(), {}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("once")
            results = run(request, model, image, mask, settings, dtype, progress)
        for text in dict.fromkeys(str(warning.message) for warning in told):
            progress.say(f"note: {text}")
        for index, result in enumerate(results):
            path = temporary / f"{index:05d}{'.tif' if result.mode == 'CMYK' else '.png'}"
            result.save(path)
            files[path.name] = hash_file(path)
        seconds = time.perf_counter() - began
        sheet(request, image, mask, results).save(temporary / "sheet.png")
        files["sheet.png"] = hash_file(temporary / "sheet.png")
        record = make_record(settings, files, {"load": round(loaded.seconds, 3), "sample": round(seconds, 3)})
        record["command"] = paint_command(settings)
        record["metrics"] = metrics(request, image, mask, results)
        write_record(temporary / RECORD, record)
    return folder


def run(
    request: PaintRequest,
    model: GenerativeModel,
    image: Image.Image,
    mask: Mask | None,
    settings: Settings,
    dtype: torch.dtype,
    progress: Progress,
) -> list[Image.Image]:
    """The results, as the samplers give them."""
    label = settings["labels"][0] if settings["labels"] else None
    count, batches = settings["count"], math.ceil(settings["count"] / settings["batch_size"])
    sampling = sampling_arguments(settings, dtype)
    sampling["batch_size"] = settings["batch_size"]
    try:
        if request.task == "upscale":
            return upscale(request, model, image, label, count, sampling, progress)
        if request.task == "outpaint":
            pieces = count_pieces(image.size, list(request.sides.values()), model.tokenizer.image_size)
            sampling["on_step"] = count_steps(progress, batches * pieces)
            return outpaint(model, image, label, n=count, **request.sides, **sampling)
        sampling["on_step"] = count_steps(progress, batches)
        if request.task == "edit":
            assert label is not None
            return edit(model, image, label, mask, strength=request.strength, n=count, **sampling)
        assert mask is not None
        return inpaint(model, image, mask, label, n=count, **sampling)
    finally:
        progress.stop()


def upscale(
    request: PaintRequest,
    model: GenerativeModel,
    image: Image.Image,
    label: int | None,
    count: int,
    sampling: Sampling,
    progress: Progress,
) -> list[Image.Image]:
    """The enlarged picture, ``count`` times."""
    results: list[Image.Image] = []
    started: list[bool] = []

    def report(done: int, tiles: int) -> None:
        if not started:
            progress.start("enlarging tiles", 0, tiles * count)
            started.append(True)
        progress.advance(len(results) * tiles + done, {})

    for index in range(count):
        results.append(
            super_resolve(
                model,
                image,
                request.factor,
                label,
                first_index=index * FIRST_TILE,
                consistent=request.consistent,
                report=report,
                **sampling,
            )
        )
    return results


def count_steps(progress: Progress, parts: int) -> StepCallback:
    """Shows the steps of so many parts, batches or pieces, as one bar; each has as many as the first, on the bar."""
    part, size = -1, 0

    def on_step(step: Step, tokens: torch.Tensor) -> None:
        nonlocal part, size
        if step.number == 0:
            part += 1
        if size == 0:
            size = step.total
            progress.start("painting", 0, parts * size)
        progress.advance(part * size + round(size * (step.number + 1) / step.total), {})

    return on_step


# What is asked for


def read_picture(path: Path) -> Image.Image:
    """A picture, upright.

    Raises:
        ValueError: If the file is no picture, too large a one, or one that cannot be edited.
        OSError: If it cannot be read.
    """
    try:
        data = path.read_bytes()
        image = open_image(data)
    except Exception as error:  # Pillow's plugins raise many types
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"'{path}' cannot be read as a picture: {error}") from None
    try:
        check_depth(data)
        return editable(image)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None


def read_mask(request: PaintRequest, image: Image.Image) -> Mask | None:
    """The mask of a file or a box; None where all is meant.

    Raises:
        ValueError: If it does not fit the picture.
    """
    if request.box is not None:
        return box_mask(request.box, image)
    if request.mask is None:
        return None
    mask = read_picture(request.mask)
    to_hidden(mask, image)  # errors before a model is loaded
    return mask


def box_mask(box: str, image: Image.Image) -> np.ndarray:
    """A rectangle "x,y,width,height" of a picture, (H, W) bool.

    Raises:
        ValueError: If it is no rectangle inside the picture.
    """
    x, y, width, height = parse_box(box)
    if x + width > image.width or y + height > image.height:
        raise ValueError(f"--box {box} leaves the picture of {image.width}x{image.height} pixels.")
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def paint_settings(request: PaintRequest, loaded: Loaded) -> Settings:
    """Everything that decides the results, JSON-able.

    Raises:
        ValueError: If the model has no such class, or there is guidance to no class.
    """
    model = loaded.model
    settings = resolve(request.sampling, model.config, loaded.weights, model.device, loaded.dtype)
    numbers = [] if request.label is None else class_numbers([request.label], model.config)
    if len(numbers) > 1:
        raise ValueError(f"--class '{request.label}' names {len(numbers)} classes; give one.")
    names = model.config.class_names
    if not numbers and not (request.task == "upscale" and model.config.low_res):
        settings["guidance_scale"] = guidance_of(None, request.sampling.guidance_scale)
    settings["labels"] = numbers or None
    settings["names"] = [names[i] for i in numbers] if names and numbers else None
    settings["task"] = request.task
    settings["image"] = _source(request.image)
    if request.mask is not None or request.box is not None:
        settings["mask"] = request.box or _source(request.mask)
    if request.task == "outpaint":
        settings["sides"] = request.sides
    if request.task == "edit":
        settings["strength"] = request.strength
    if request.task == "upscale":
        settings["factor"] = check_factor(model, request.factor)
        settings["consistent"] = request.consistent
    return settings


def _source(path: Path | None) -> dict[str, str]:
    assert path is not None
    return {"file": str(path.resolve()), "sha256": hash_file(path)}


def paint_command(settings: Settings) -> str:
    """The command that repeats it."""
    words: list[str] = [settings["image"]["file"]]
    mask = settings.get("mask")
    if mask is not None:
        words += ["--box", mask] if isinstance(mask, str) else ["--mask", mask["file"]]
    for side, pixels in settings.get("sides", {}).items():
        words += [f"--{side}", str(pixels)] if pixels else []
    if "strength" in settings:
        words += ["--strength", str(settings["strength"])]
    if "factor" in settings:
        words += ["--factor", str(settings["factor"]), *(["--no-consistent"] if not settings["consistent"] else [])]
    if settings["labels"]:
        words += ["--class", str(settings["labels"][0])]
    return command_line({**settings, "labels": None}, settings["task"], words)


def metrics(
    request: PaintRequest, image: Image.Image, mask: Mask | None, results: Sequence[Image.Image]
) -> dict[str, float]:
    """What can be said of results whose truth is not known, in 8-bit levels.

    ``diversity`` is the mean distance of two results where they were painted, as root mean square of the differences;
    ``consistency_error`` how far the reductions of upscaled results are from the picture, at most.
    """
    found = {}
    if len(results) > 1:
        hidden = hidden_of(request, image, mask)
        painted = [to_pixels(result)[:, hidden if request.task != "upscale" else slice(None)] for result in results]
        found["diversity"] = round(diversity(torch.stack(painted)[None]).item(), 2)
    if request.task == "upscale":
        given = to_pixels(image)[None]
        errors = (consistency_error(to_pixels(result)[None], given).max().item() for result in results)
        found["consistency_error"] = round(max(errors), 2)
    return found


def hidden_of(request: PaintRequest, image: Image.Image, mask: Mask | None) -> torch.Tensor:
    """What was painted, (H, W) bool, of the size of the results of all tasks but upscaling."""
    if request.task == "outpaint":
        return torch.from_numpy(extend(image, **request.sides)[1])
    return torch.ones(image.height, image.width, dtype=torch.bool) if mask is None else to_hidden(mask, image)


# Display


def sheet(request: PaintRequest, image: Image.Image, mask: Mask | None, results: Sequence[Image.Image]) -> Image.Image:
    """The picture, what was hidden of it, and the results; of upscaling, bicubic enlargement and the results."""
    pictures = [*before(request, image, mask, results[0].size), *(to_rgb(result).copy() for result in results)]
    limit = THUMBNAIL * (2 if request.task == "upscale" else 1)
    for picture in pictures:
        picture.thumbnail((limit, limit))
    return contact_sheet(pictures, columns=6, scale=max(1, limit // 2 // max(pictures[0].size)))


def before(request: PaintRequest, image: Image.Image, mask: Mask | None, size: tuple[int, int]) -> list[Image.Image]:
    """What the results are compared with, of the same size."""
    if request.task == "upscale":
        return [to_rgb(image).resize(size, how) for how in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)]
    hidden = hidden_of(request, image, mask).numpy()
    if request.task == "outpaint":
        image, _ = extend(image, **request.sides)
    marked = np.array(to_rgb(image))
    marked[hidden] = HIDDEN_COLOUR
    shown = [] if request.task == "outpaint" else [to_rgb(image).copy()]
    return [*shown, Image.fromarray(marked)]
