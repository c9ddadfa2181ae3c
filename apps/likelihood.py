"""`genaim evaluate likelihood`: what the images of a split cost under a model."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from apps.folders import make_parent, write_json
from apps.progress import make_progress
from apps.sample import libraries, machine
from apps.splits import data_for, open_split
from genaim.core.hardware import pick_device
from genaim.evaluation.likelihood import Likelihood, check_density, likelihood
from genaim.pretrained import load_generator
from genaim.tokenizers import fingerprint

RECORD_FORMAT = "genaim likelihood 1"


@dataclass(frozen=True)
class LikelihoodRequest:
    """What is asked for."""

    model: str
    """Name of a model, model folder or run folder."""
    data: str | None = None
    """What `apps.splits.data_for` takes; None takes the model's recipe."""
    split: Literal["val", "train"] = "val"
    """Part of the data."""
    count: int | None = None
    """How many images, evenly over the split; None takes all."""
    classes: bool = True
    """Whether the model is told the classes."""
    seed: int = 0
    """Seed of posterior samples and random paths."""
    batch_size: int = 64
    """Images computed together."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def score(request: LikelihoodRequest, report: Path | None = None) -> Likelihood:
    """Scores a split, prints the figures, and writes a record to ``report``.

    Raises:
        ValueError: If the model has no exact density, or the data do not fit it.
    """
    if request.batch_size < 1:
        raise ValueError(f"--batch-size is {request.batch_size}; it must be 1 or more.")
    if report is not None:
        make_parent(report)
    progress = make_progress(sys.stderr)
    device = pick_device(request.device)
    model = load_generator(request.model, device=device, progress=progress)
    check_density(model, f"model '{request.model}'")
    data = data_for(request.model, request.data)
    split = open_split(data, request.split, model.tokenizer.image_size, request.count, model.config.class_names)
    progress.start("scoring", 0, len(split))
    found = likelihood(
        model,
        split.batches(request.batch_size),
        classes=request.classes,
        seed=request.seed,
        report=lambda done: progress.advance(done, {}),
    )
    progress.stop()
    if split.bad_files.names:
        progress.say(split.bad_files.summary())
    show(request.model, split.what, found)
    if report is not None:
        record: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "settings": {**asdict(request), "device": device.type, "dtype": "float32", "weights": fingerprint(model)},
            "data": {"what": split.what, "fingerprint": split.dataset.fingerprint()},
            "likelihood": asdict(found),
            "libraries": libraries(),
            "machine": machine(device.type),
        }
        write_json(report, record)
        print(f"written: {report}")
    return found


def show(model: str, data: str, found: Likelihood) -> None:
    """Prints the figures."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    error = "" if found.standard_error is None else f" +- {found.standard_error:.4f}"
    uniform = found.uniform_nats_per_token
    equal = "" if uniform is None else f" (all values equally likely: {uniform:.4f})"
    rows = {
        "model": model,
        "images": f"{data}; {found.images:,} scored, {found.told_class:,} with their class told",
        "scored": found.of,
        "order": found.order,
        "nats per token": f"{found.nats_per_token:.4f}{error}{equal}",
        "nats per image": f"{found.nats_per_image:.2f}",
    }
    if found.bits_per_dimension is not None:
        rows["bits/dimension"] = f"{found.bits_per_dimension:.4f}, exact, over {found.dimensions:,} values an image"
    if found.nats_per_scale is not None:
        rows["by scale"] = ", ".join(f"{nats:.3f}" for nats in found.nats_per_scale) + " nats per token"
    for heading, text in rows.items():
        table.add_row(heading, text)
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table, markup=False)
