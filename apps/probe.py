"""`genaim evaluate probe`: what classes can be read off the features of models, layer by layer.

One table has the models, the same architectures with fresh weights, and the pixels themselves.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apps.folders import make_parent, write_json
from apps.held_out import row_names
from apps.probe_report import Row, check_plot, plot, tables
from apps.progress import make_progress
from apps.sample import libraries, machine
from apps.splits import Split, data_for, open_split
from genaim.core.hardware import pick_device, pick_dtype
from genaim.core.progress import Progress
from genaim.data import DataConfig
from genaim.evaluation.features import FeatureSource, ModelFeatures, PixelFeatures, layer_name, untrained
from genaim.evaluation.fine_tuning import fine_tune, tuned_accuracy
from genaim.evaluation.probe_protocols import Protocol, choose_protocols
from genaim.evaluation.probe_sweep import LabelledImages, probed, steps_of, sweep
from genaim.evaluation.probe_training import Training
from genaim.models import CausalGenerator, Encoder
from genaim.models.encoder import Layers
from genaim.pretrained import from_pretrained
from genaim.tokenizers import fingerprint

RECORD_FORMAT = "genaim probe 1"
Probeable = Encoder | CausalGenerator


@dataclass(frozen=True)
class ProbeRequest:
    """What is asked for."""

    models: tuple[str, ...]
    """Names of models, model folders or run folders, of images of one size."""
    probes: tuple[str, ...] = ("knn", "linear", "attentive")
    """Protocols by name."""
    layers: tuple[Layers, ...] | None = None
    """Layers of the frozen features, as `features` takes them; None takes all."""
    data: str | None = None
    """What `apps.splits.data_for` takes; None takes the recipe of the first model."""
    train_count: int | None = None
    """Training images, evenly over the split; None takes all."""
    test_count: int | None = None
    """Images to judge on, evenly over the split; None takes all."""
    baselines: bool = True
    """Whether pixels and untrained models are probed too."""
    epochs: int | None = None
    """Of the trained probes; None takes the published number, as in the next two."""
    step_images: int | None = None
    """Images of a step."""
    lrs: tuple[float, ...] | None = None
    """Peak learning rates to choose from."""
    seed: int = 0
    """Seed of probes and untrained models."""
    batch_size: int = 64
    """Images whose features are computed together."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "float32"
    """Autocast type of the features."""


class Images(NamedTuple):
    """The images of a request."""

    data: DataConfig
    """Where they come from, at the models' size."""
    train: Split
    """To train on."""
    test: Split
    """To judge on."""
    num_classes: int
    """Classes of both."""


def probe(request: ProbeRequest, report: Path | None = None, picture: Path | None = None) -> list[Row]:
    """Probes models, prints tables, and writes a record to ``report`` and a plot to ``picture``.

    Raises:
        ValueError: If a model gives no features, or the data do not fit.
    """
    check(request)
    check_plot(picture)
    for file in filter(None, (report, picture)):
        make_parent(file)
    progress = make_progress(sys.stderr)
    device = pick_device(request.device)
    pick_dtype(request.dtype, device)  # refuses unknown ones
    models = {name: load(model, device, progress) for model, name in row_names(request.models).items()}
    for name, model in models.items():
        ModelFeatures(model, request.layers)  # refuses layers that are not there
        if size_of(model) != size_of(next(iter(models.values()))):
            raise ValueError(f"'{name}' sees images of another size than '{next(iter(models))}'; probe them apart.")
    images = open_images(request, size_of(next(iter(models.values()))))
    rows: list[Row] = []
    for row in probe_all(request, models, images, device, progress):
        progress.say(f"{row.features}, layer {row.layer}, {row.probe}: {row.accuracy:.2%}")
        rows.append(row)
    for split in (images.train, images.test):
        if split.bad_files.names:
            progress.say(split.bad_files.summary())
    print(f"{images.train.what} to train on; {images.test.what} to judge on; {images.num_classes} classes\n")
    print(tables(rows))
    if picture is not None:
        plot(rows, picture)
        print(f"written: {picture}")
    if report is not None:
        record = make_record(request, models, images, rows, device)
        write_json(report, record)
        print(f"written: {report}")
    return rows


def make_record(
    request: ProbeRequest, models: dict[str, Probeable], images: Images, rows: list[Row], device: torch.device
) -> dict[str, Any]:
    """What was asked for, on what, and what was found; JSON-able."""
    return {
        "format": RECORD_FORMAT,
        "settings": {**asdict(request), "device": device.type},
        "weights": {name: fingerprint(model) for name, model in models.items()},
        "protocols": {name: asdict(protocol) for name, protocol in protocols_of(request).items()},
        "train": {"what": images.train.what, "fingerprint": images.train.dataset.fingerprint()},
        "test": {"what": images.test.what, "fingerprint": images.test.dataset.fingerprint()},
        "results": [row._asdict() for row in rows],
        "libraries": libraries(),
        "machine": machine(device.type),
    }


def check(request: ProbeRequest) -> None:
    """Raises ValueError for what no model can honour."""
    if request.batch_size < 1:
        raise ValueError(f"--batch-size is {request.batch_size}; it must be 1 or more.")
    protocols_of(request)


def protocols_of(request: ProbeRequest) -> dict[str, Protocol]:
    """What is asked for, by name.

    Raises:
        ValueError: If there is no such probe, or a number does not fit.
    """
    chosen = choose_protocols(request.probes, epochs=request.epochs, batch_size=request.step_images, lrs=request.lrs)
    if "finetune" in chosen and len(request.lrs or ()) > 1:
        raise ValueError("finetune takes one learning rate; give --lr one, or probe without it.")
    return chosen


def parse_numbers(text: str | None) -> tuple[float, ...] | None:
    """Positive numbers with commas between them.

    Raises:
        ValueError: If they are something else.
    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise ValueError(f"--lr is '{text}'; give positive numbers with commas, such as 1e-3,1e-2.")
    return found


def parse_layers(text: str | None) -> tuple[Layers, ...] | None:
    """``0,-1,norm`` as `features` takes them; the models refuse what is not there."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return tuple(int(name) if name.removeprefix("-").isdecimal() else name for name in names)


def load(name: str, device: torch.device, progress: Progress) -> Probeable:
    """A model that gives features.

    Raises:
        ValueError: If it cannot be read, or gives none.
    """
    model = from_pretrained(name, device=device, progress=progress)
    if not isinstance(model, Probeable):
        kind = getattr(model.config, "kind", type(model).__name__)
        raise ValueError(f"'{name}' ({kind}) gives no features to probe; give an encoder, or a causal generator.")
    if isinstance(model, CausalGenerator) and model.config.low_res is not None:
        raise ValueError(f"'{name}' enlarges pictures, and gives no features; use one that draws them by itself.")
    return model


def size_of(model: Probeable) -> int:
    """Side of a model's images."""
    return model.image_size if isinstance(model, Encoder) else model.tokenizer.image_size


def open_images(request: ProbeRequest, image_size: int) -> Images:
    """Training images, and others to judge on.

    Raises:
        ValueError: If they have no classes, or are the same.
    """
    data = data_for(request.models[0], request.data)
    train = open_split(data, "train", image_size, request.train_count)
    classes = train.dataset.num_classes or 0
    if classes < 2:
        raise ValueError(f"{train.what}, have {classes} classes; probes need 2 or more, such as sub-folders.")
    test = open_split(data, "val", image_size, request.test_count, train.dataset.class_names)
    if train.dataset.fingerprint() == test.dataset.fingerprint():
        raise ValueError(
            f"the probes would be judged on their own training images, {train.what}; give --data a recipe, a data set "
            "with the splits train and test, or '{train: {...}, val: {...}}'."
        )
    return Images(data.model_copy(update={"image_size": image_size}), train, test, classes)


def probe_all(
    request: ProbeRequest,
    models: dict[str, Probeable],
    images: Images,
    device: torch.device,
    progress: Progress,
) -> Iterator[Row]:
    """Every figure of a request, as it is found."""
    train, test = (
        LabelledImages(partial(split.batches, request.batch_size, images.data.num_workers), len(split))
        for split in (images.train, images.test)
    )
    options: dict[str, Any] = {"seed": request.seed, "device": device}
    frozen = protocols_of(request)
    tuning = frozen.pop("finetune", None)
    dtype = pick_dtype(request.dtype, device)
    for name, model in rows_of(request, models, device):
        source: FeatureSource = model if isinstance(model, PixelFeatures) else ModelFeatures(model, request.layers)
        if frozen:
            classes = images.num_classes
            for found in sweep(
                source, train, test, classes, frozen, name=name, progress=progress, dtype=dtype, **options
            ):
                yield Row(name, *found)
        if isinstance(tuning, Training) and not isinstance(model, PixelFeatures):
            accuracy = tuned(name, model, images, test, tuning, progress, options)
            yield Row(name, *probed(layer_name(model, None), "finetune", accuracy, test.total))


def rows_of(
    request: ProbeRequest, models: dict[str, Probeable], device: torch.device
) -> Iterator[tuple[str, Probeable | PixelFeatures]]:
    """What has a row: the pixels, and each model after its architecture with fresh weights.

    Encoders that differ in nothing but the order of pre-training are equal before it, and have one such row.
    """
    seen = set()
    if request.baselines:
        first = next(iter(models.values()))
        tokens = first.num_tokens if isinstance(first, Encoder) else first.tokenizer.num_tokens
        yield "pixels", PixelFeatures(size_of(first) // isqrt(tokens))
    for name, model in models.items():
        if request.baselines:
            fresh: Probeable = untrained(model, request.seed).to(device)
            config = fresh.config
            if isinstance(fresh, Encoder):
                config = config.model_copy(update={"order": "raster"})
            if config.model_dump_json() not in seen:
                yield f"{name}, untrained", fresh
            seen.add(config.model_dump_json())
        yield name, model


def tuned(
    name: str,
    model: Probeable,
    images: Images,
    test: LabelledImages,
    training: Training,
    progress: Progress,
    options: dict[str, Any],
) -> float:
    """Accuracy of a copy of a model after fine-tuning."""
    report = steps_of(progress, f"{name}, finetune")
    data = images.train.augmented(images.data)
    found = fine_tune(
        model, data, images.num_classes, training, num_workers=images.data.num_workers, report=report, **options
    )
    progress.stop()
    progress.start(f"{name}, finetune: the test images", 0, test.total)
    accuracy = tuned_accuracy(found, test.batches(), options["device"], lambda done: progress.advance(done, {}))
    progress.stop()
    return accuracy
