"""What a sampling is asked for: its options, resolved against a model into settings that repeat it."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apps.folders import read_record
from genaim.heads import SamplingOptions
from genaim.models import GeneratorConfig
from genaim.pretrained.names import is_named
from samplers.labels import class_numbers

Settings = dict[str, Any]
"""Everything that decides the pictures, JSON-able."""


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

    def check(self) -> None:
        """Raises ValueError for numbers that no model can honour."""
        if self.count < 1:
            raise ValueError(f"-n is {self.count}; ask for 1 image or more.")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}; it must be 1 or more.")
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"--steps is {self.num_steps}; it must be 1 or more.")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"--guidance is {self.guidance_scale}; it must be a finite number, 1 is off.")


def resolve(
    request: SampleRequest, config: GeneratorConfig, weights: str, device: torch.device, dtype: torch.dtype
) -> Settings:
    """Everything that decides the pictures, JSON-able."""
    defaults = config.sampling
    scale = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    if scale != 1.0 and not config.num_classes and not config.low_res:
        raise ValueError(f"--guidance {scale:g} needs classes, and model '{request.model}' has none; leave it out.")
    options = defaults.options(**{name: getattr(request, name) for name in SamplingOptions.model_fields}).model_dump()
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
        "options": options,
        "num_steps": defaults.num_steps if request.num_steps is None else request.num_steps,
        "batch_size": request.batch_size,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def in_words(value: float | str | None) -> str:
    """A sampling option for a reader."""
    return "off" if value is None else value if isinstance(value, str) else f"{value:g}"


def choose_labels(request: SampleRequest, config: GeneratorConfig) -> list[int] | None:
    """The class of every image: those asked for in turn, or all in turn; None where the model has none.

    Raises:
        ValueError: If a class is unknown.
    """
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
        return SampleRequest(
            model=settings["model"],
            classes=tuple(map(str, settings["labels"] or ())),
            count=settings["count"],
            seed=settings["seed"],
            guidance_scale=settings["guidance_scale"],
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
