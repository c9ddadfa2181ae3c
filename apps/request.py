"""What is asked for: options, checked before torch is imported, and resolved against a model into settings.

Settings repeat a sampling.
"""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.folders import read_record
from genaim.pretrained.names import is_named, locate

if TYPE_CHECKING:
    import torch

    from genaim.models import GeneratorConfig
    from samplers.generate import Sampling

Settings = dict[str, Any]
"""Everything that decides the pictures, JSON-able."""

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16")
SCHEDULES = ("constant", "linear_in_step", "linear_in_share")  # those of samplers.guidance, which imports torch
FINITE = sys.float_info.max
RANGES = (
    ("count", "-n", 1, 1_000_000, "1 to 1,000,000 images"),
    ("batch_size", "--batch-size", 1, FINITE, "1 or more"),
    ("guidance_scale", "--guidance", -FINITE, FINITE, "a finite number; 1 is off"),
    ("temperature", "--temperature", 0, FINITE, "0 or more, and finite"),
    ("top_k", "--top-k", 0, FINITE, "1 or more, or 0, which is off"),
    ("top_p", "--top-p", math.ulp(0.0), 1, "above 0, and at most 1, which is off"),
    ("num_steps", "--steps", 1, FINITE, "1 or more"),
    ("diffusion_steps", "--diffusion-steps", 1, 1000, "1 to 1000"),
)
"""Field, option, least value, largest value, and both in words."""
MAX_PIXELS = 2**28  # of all results, which are kept in memory until they are written


@dataclass(frozen=True)
class SampleRequest:
    """What is asked for; None takes the model's own value."""

    model: str
    """Name of a model, model folder or run folder."""
    classes: tuple[str, ...] = ()
    """Names or numbers, given in turn to the images; none takes all classes."""
    count: int = 16
    """Number of images."""
    seed: int = 0
    """Seed of all images."""
    guidance_scale: float | None = None
    """1.0 is off."""
    guidance_schedule: str | None = None
    """One of `SCHEDULES`."""
    temperature: float | None = None
    """Below 1 prefers likely tokens."""
    top_k: int | None = None
    """0 is off."""
    top_p: float | None = None
    """1.0 is off."""
    num_steps: int | None = None
    """Steps of generation, for orders that can choose them."""
    diffusion_steps: int | None = None
    """Steps of a diffusion head for each token."""
    scheduler: str | None = None
    """Sampler of a diffusion head."""
    batch_size: int = 16
    """Images computed together."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, float32 or bfloat16."""
    weights: str | None = None
    """Fingerprint that the model must have."""

    def check(self, *kinds: str) -> None:
        """Refuses what no model can honour, in the words of the command line.

        Args:
            kinds: What the model may be, as `locate` takes them; none given takes a generator.

        Raises:
            ValueError: If an option is out of its range, or there is no such model.
        """
        for field, option, least, largest, allowed in RANGES:
            value = getattr(self, field)
            if value is not None and not least <= value <= largest:
                raise ValueError(f"{option} is {value}; it must be {allowed}.")
        if self.device.partition(":")[0] not in DEVICES:
            raise ValueError(f"--device is '{self.device}'; use auto, cpu, cuda or mps.")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype is '{self.dtype}'; use auto, float32 or bfloat16.")
        if self.guidance_schedule not in (None, *SCHEDULES):
            raise ValueError(f"--guidance-schedule is '{self.guidance_schedule}'; use {', '.join(SCHEDULES)}.")
        locate(self.model, *(kinds or ("generator",)))


@dataclass(frozen=True)
class PaintRequest:
    """What is asked for."""

    task: str
    """inpaint, outpaint, edit or upscale."""
    image: Path
    """The picture."""
    sampling: SampleRequest
    """Model, number of results and how they are drawn; its classes are not used."""
    label: str | None = None
    """Class to paint, by name or number."""
    mask: Path | None = None
    """A picture that is white where to paint."""
    box: str | None = None
    """A rectangle instead: x,y,width,height."""
    strength: float = 1.0
    """Of an edit."""
    left: int = 0
    """Pixels to add there; so the other three."""
    top: int = 0
    right: int = 0
    bottom: int = 0
    factor: int | None = None
    """Of upscaling; None is the model's."""
    consistent: bool = True
    """Whether an upscaled picture gives the picture again when it is reduced."""

    @property
    def sides(self) -> dict[str, int]:
        """Pixels that outpainting adds to each side."""
        return {"left": self.left, "top": self.top, "right": self.right, "bottom": self.bottom}

    def check(self) -> None:
        """Refuses what no model can honour, in the words of the command line; of the picture, its header is read.

        Raises:
            ValueError: If options do not agree, are out of their range, or do not fit the picture.
            OSError: If there is no picture, or no mask.
        """
        self.sampling.check()
        if self.mask is not None and self.box is not None:
            raise ValueError("--mask and --box are both given; leave one out.")
        if self.task == "inpaint" and self.mask is None and self.box is None:
            raise ValueError("inpaint needs to know where: give --mask FILE (white where to paint) or --box X,Y,W,H.")
        if self.task == "outpaint" and not any(self.sides.values()):
            raise ValueError("outpaint needs to know where: give --left, --top, --right or --bottom pixels to add.")
        width, height = picture_size(self.image)
        if self.mask is not None:
            picture_size(self.mask)
        if self.box is not None:
            parse_box(self.box)
        factor = self.factor or 1
        width, height = factor * (width + self.left + self.right), factor * (height + self.top + self.bottom)
        if self.sampling.count * width * height > MAX_PIXELS:
            raise ValueError(
                f"results of {width}x{height} pixels (-n {self.sampling.count}) have more than {MAX_PIXELS:,} pixels "
                "in all; ask for fewer or smaller ones."
            )


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header, which may lie on its side.

    Raises:
        ValueError: If the file is no picture, or has more pixels than Pillow reads.
        OSError: If it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as header:
            return header.size
    except UnidentifiedImageError:
        raise ValueError(f"'{path}' cannot be read as a picture: not in an image format that Pillow reads.") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"'{path}' cannot be read as a picture: {error}") from None


def parse_box(box: str) -> tuple[int, int, int, int]:
    """The numbers of a rectangle "x,y,width,height".

    Raises:
        ValueError: If they are not four, or it is empty.
    """
    parts = box.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--box is '{box}'; give four whole numbers: x,y,width,height in pixels from the top left.")
    x, y, width, height = map(int, parts)
    if not width or not height:
        raise ValueError(f"--box {box} is empty; give a width and a height of 1 or more.")
    return x, y, width, height


def check_address(host: str, port: int | None) -> None:
    """Makes sure that a server can listen; without a port, that it can at some.

    Raises:
        ValueError: If it cannot.
    """
    import errno
    import socket

    try:
        family = socket.getaddrinfo(host, port)[0][0]
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} is in use at {host}; choose another --port, or leave it out to take the next free one."
            ) from None
        where = host if port is None else f"{host}, port {port}"
        raise ValueError(
            f"no server can listen at {where} ({error.strerror}); choose another --host or --port."
        ) from None


def resolve(
    request: SampleRequest, config: "GeneratorConfig", weights: str, device: "torch.device", dtype: "torch.dtype"
) -> Settings:
    """Everything that decides the pictures, JSON-able."""
    from genaim.models import MODELS

    defaults = config.sampling
    scale = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    if scale != 1.0 and not config.num_classes and not config.low_res:
        raise ValueError(f"--guidance {scale:g} needs classes, and model '{request.model}' has none; leave it out.")
    options = defaults.options(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        diffusion_steps=request.diffusion_steps,
        scheduler=request.scheduler,
    )
    published = next(model.guidance_schedule for kind, model in MODELS.values() if isinstance(config, kind))
    labels = choose_labels(request, config)
    names = config.class_names if labels is not None else None
    return {
        "model": request.model if is_named(request.model) else str(Path(request.model).expanduser().resolve()),
        "weights": weights,
        "count": request.count,
        "labels": labels,
        "names": [names[i] for i in labels] if names and labels is not None else None,
        "seed": request.seed,
        "guidance_scale": scale,
        "guidance_schedule": request.guidance_schedule or defaults.guidance_schedule or published,
        "options": options.model_dump(),
        "num_steps": defaults.num_steps if request.num_steps is None else request.num_steps,
        "batch_size": request.batch_size,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def sampling_arguments(settings: Settings, dtype: "torch.dtype") -> "Sampling":
    """What settings are to a sampler, but for the batch size."""
    from genaim.heads import SamplingOptions

    return {
        "seed": settings["seed"],
        "options": SamplingOptions(**settings["options"]),
        "guidance_scale": settings["guidance_scale"],
        "guidance_schedule": settings["guidance_schedule"],
        "num_steps": settings["num_steps"],
        "dtype": dtype,
    }


def sampling_in_words(settings: Settings) -> str:
    """Guidance, steps and options that are not off."""
    named = {"guidance": "guidance_scale", "schedule": "guidance_schedule", "steps": "num_steps"}
    if settings["guidance_scale"] == 1.0:
        del named["schedule"]
    chosen = {name: settings[key] for name, key in named.items()} | settings["options"]
    return ", ".join(f"{name} {in_words(value)}" for name, value in chosen.items() if value is not None)


def in_words(value: float | str | None) -> str:
    """A sampling option for a reader."""
    return "off" if value is None else value if isinstance(value, str) else f"{value:g}"


def choose_labels(request: SampleRequest, config: "GeneratorConfig") -> list[int] | None:
    """The class of every image: those asked for in turn, or all in turn; None where the model has none.

    Raises:
        ValueError: If a class is unknown.
    """
    from samplers.labels import class_numbers

    if not config.num_classes:
        if request.classes:
            raise ValueError(
                f"model '{request.model}' has no classes; leave out --classes {','.join(request.classes)}."
            )
        return None
    chosen = class_numbers(request.classes, config) or list(range(config.num_classes))
    return [chosen[i % len(chosen)] for i in range(request.count)]


def read_request(path: Path) -> SampleRequest:
    """The request that repeats a record.

    Raises:
        ValueError: If the file is not a record.
    """
    record = read_record(path)
    if "task" in record.get("settings", {}):
        raise ValueError(
            f"'{path}' is a record of a changed picture; repeat it by its command: {record.get('command')}"
        )
    try:
        settings = record["settings"]
        options = settings["options"]
        request = SampleRequest(
            model=settings["model"],
            classes=tuple(map(str, settings["labels"] or ())),
            count=settings["count"],
            seed=settings["seed"],
            guidance_scale=settings["guidance_scale"],
            guidance_schedule=settings["guidance_schedule"],
            temperature=options["temperature"],
            top_k=options["top_k"] or 0,
            top_p=options["top_p"] or 1.0,
            num_steps=settings.get("num_steps"),
            diffusion_steps=options.get("diffusion_steps"),
            scheduler=options.get("scheduler"),
            batch_size=settings["batch_size"],
            device=settings["device"],
            dtype=settings["dtype"],
            weights=settings["weights"],
        )
        request.check()
        return request
    except (KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is not a whole record: {error} is missing or wrong.") from None


def command_line(settings: Settings, command: str = "sample", first: Sequence[str] = ()) -> str:
    """The command that repeats a sampling; ``first`` are the arguments that are not those of `genaim sample`."""
    options, labels = settings["options"], settings["labels"]
    arguments = {
        "--model": settings["model"],
        "--classes": labels and ",".join(map(str, shortest_turn(labels))),
        "-n": settings["count"],
        "--seed": settings["seed"],
        "--guidance": settings["guidance_scale"],
        "--guidance-schedule": settings["guidance_schedule"],
        "--temperature": options["temperature"],
        "--top-k": options["top_k"] or 0,
        "--top-p": options["top_p"] or 1.0,
        "--steps": settings["num_steps"],
        "--diffusion-steps": options["diffusion_steps"],
        "--scheduler": options["scheduler"],
        "--batch-size": settings["batch_size"],
        "--device": settings["device"],
        "--dtype": settings["dtype"],
    }
    words = (word for name, value in arguments.items() if value is not None for word in (name, str(value)))
    return shlex.join(["genaim", command, *first, *words])


def shortest_turn(labels: Sequence[int]) -> Sequence[int]:
    """The shortest beginning of ``labels`` whose repetition gives them all."""
    return next(
        labels[:p] for p in range(1, len(labels) + 1) if all(a == b for a, b in zip(labels, labels[p:], strict=False))
    )
