"""`genaim evaluate probe`: what classes can be read off the features of models, layer by layer.

One table has the models, the same architectures with fresh weights, and the pixels themselves.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apps.cache_keys import computed_on, minor
from apps.errors import Stopped
from apps.folders import make_parent, write_json
from apps.held_out import row_names
from apps.probe_report import Row, check_plot, plot, tables
from apps.probe_request import ProbeRequest, check, protocols_of
from apps.probe_scores import KeptScores, library_code
from apps.progress import make_progress
from apps.sample import libraries, machine
from apps.splits import Split, data_for, open_split
from genaim.core.hardware import pick_device, pick_dtype
from genaim.core.progress import Progress
from genaim.data import DataConfig
from genaim.data.sources import digest
from genaim.evaluation.features import FeatureSource, ModelFeatures, PixelFeatures, layer_name, untrained
from genaim.evaluation.fine_tuning import fine_tune, tuned_accuracy
from genaim.evaluation.probe_sweep import LabelledImages, Unit, probed, sweep
from genaim.evaluation.probe_training import Training, steps_of
from genaim.evaluation.probes import Scores
from genaim.models import CausalGenerator, Encoder
from genaim.pretrained import from_pretrained
from genaim.tokenizers import fingerprint

RECORD_FORMAT = "genaim probe 1"
Probeable = Encoder | CausalGenerator


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
    content: list[str]
    """Digests of the pixels and labels to train on, and to judge on."""


def probe(
    request: ProbeRequest,
    report: Path | None = None,
    picture: Path | None = None,
    *,
    cache: Path,
    command: Sequence[str],
) -> list[Row]:
    """Probes models, prints tables, and writes a record and a plot.

    Args:
        request: What is asked for.
        report: The record's file, if any.
        picture: The plot's file, if any.
        cache: Folder where scores are kept, so that the same command goes on where it was interrupted.
        command: The command line that repeats this.

    Raises:
        ValueError: If a model gives no features, or the data do not fit.
        Stopped: After an interruption, with what is done kept.
    """
    check(request)
    check_plot(picture)
    for file in filter(None, (report, picture)):
        make_parent(file)
    progress = make_progress(sys.stderr)
    device = pick_device(request.device)
    pick_dtype(request.dtype, device)  # refuses unknown ones
    try:
        models = load_all(request, device, progress)
        images = open_images(request, size_of(next(iter(models.values()))))
        rows: list[Row] = []
        for row in probe_all(request, models, images, device, progress, cache / "probes"):
            progress.say(f"{row.features}, layer {row.layer}, {row.probe}: {row.accuracy:.2%}")
            rows.append(row)
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; the same command goes on: {shlex.join(command)}") from None
    finally:
        progress.stop()
    for split in (images.train, images.test):
        if split.bad_files.names:
            progress.say(split.bad_files.summary())
    print(f"{images.train.what} to train on; {images.test.what} to judge on; {images.num_classes} classes\n")
    print(tables(rows))
    if picture is not None:
        plot(rows, picture)
        print(f"written: {picture}")
    if report is not None:
        write_json(report, make_record(request, models, images, rows, device, command))
        print(f"written: {report}")
    return rows


def make_record(
    request: ProbeRequest,
    models: dict[str, Probeable],
    images: Images,
    rows: list[Row],
    device: torch.device,
    command: Sequence[str],
) -> dict[str, Any]:
    """What was asked for, on what, and what was found; JSON-able."""
    return {
        "format": RECORD_FORMAT,
        "command": shlex.join(command),
        "settings": {**asdict(request), "device": device.type},
        "weights": {name: fingerprint(model) for name, model in models.items()},
        "protocols": {name: asdict(protocol) for name, protocol in protocols_of(request).items()},
        "train": {"what": images.train.what, "fingerprint": images.train.dataset.fingerprint()},
        "test": {"what": images.test.what, "fingerprint": images.test.dataset.fingerprint()},
        "results": [row._asdict() for row in rows],
        "libraries": libraries(),
        "machine": machine(device.type),
    }


def load_all(request: ProbeRequest, device: torch.device, progress: Progress) -> dict[str, Probeable]:
    """The models of a request by what the tables call them.

    Raises:
        ValueError: If one of them gives no such features, or they see images of several sizes.
    """
    models = {name: load(model, device, progress) for model, name in row_names(request.models).items()}
    first = next(iter(models))
    for name, model in models.items():
        ModelFeatures(model, request.layers)  # refuses layers that are not there
        if size_of(model) != size_of(models[first]):
            raise ValueError(f"'{name}' sees images of another size than '{first}'; probe them apart.")
    return models


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
    """Training images, and others to judge on. All are read once for the digests of their content.

    Raises:
        ValueError: If they have no classes, or are the same.
        OSError: If a file cannot be read.
    """
    data = data_for(request.models[0], request.data)
    train = open_split(data, "train", image_size, request.train_count)
    classes = train.dataset.num_classes or 0
    if classes < 2:
        raise ValueError(f"{train.what}, have {classes} classes; probes need 2 or more, such as sub-folders.")
    test = open_split(data, "val", image_size, request.test_count, train.dataset.class_names)
    same = train.dataset.fingerprint() == test.dataset.fingerprint()  # it may be for equal names and sizes alone
    if same and len({part.dataset.content(range(len(part.dataset))) for part in (train, test)}) == 1:
        raise ValueError(
            f"the probes would be judged on their own training images, {train.what}; give --data a recipe, a data set "
            "with the splits train and test, or '{train: {...}, val: {...}}'."
        )
    content = [
        digest(split.dataset.content(split.indices), split.dataset.labels(split.indices).tolist())
        for split in (train, test)
    ]
    return Images(data.model_copy(update={"image_size": image_size}), train, test, classes, content)


def probe_all(
    request: ProbeRequest,
    models: dict[str, Probeable],
    images: Images,
    device: torch.device,
    progress: Progress,
    kept: Path,
) -> Iterator[Row]:
    """Every figure of a request, as it is found; those in the folder ``kept`` are not measured again."""
    train, test = (
        LabelledImages(partial(split.batches, request.batch_size, images.data.num_workers), len(split))
        for split in (images.train, images.test)
    )
    options: dict[str, Any] = {"seed": request.seed, "device": device}
    protocols = protocols_of(request)
    frozen = {name: protocol for name, protocol in protocols.items() if name != "finetune"}
    tuning = protocols.get("finetune")
    dtype = pick_dtype(request.dtype, device)
    for name, model in rows_of(request, models, device):
        source: FeatureSource = model if isinstance(model, PixelFeatures) else ModelFeatures(model, request.layers)
        finished = KeptScores(kept, decisive(request, model, images, device), protocols)
        if frozen:
            options_of_sweep = {"name": name, "progress": progress, "finished": finished, "dtype": dtype, **options}
            for found in sweep(source, train, test, images.num_classes, frozen, **options_of_sweep):
                yield Row(name, *found)
        if isinstance(tuning, Training) and not isinstance(model, PixelFeatures):
            unit = Unit(layer_name(model, None), "finetune", tuning.lrs[0])
            if unit not in finished:
                finished[unit] = tuned(name, model, images, test, tuning, progress, options)
            yield Row(name, *probed(unit.layer, unit.probe, finished[unit]))


def decisive(
    request: ProbeRequest, model: Probeable | PixelFeatures, images: Images, device: torch.device
) -> dict[str, Any]:
    """What decides the scores of a model beside layer and protocol, to the last bit; JSON-able."""
    if isinstance(model, PixelFeatures):
        features: dict[str, Any] = {"pixels": model.patch_size}
    else:
        parts = (model, model.tokenizer) if isinstance(model, CausalGenerator) else (model,)
        configs = [part.config.model_dump(mode="json") for part in parts]
        features = {"weights": fingerprint(model), "configs": configs}
    return {
        "code": library_code(),
        "torch": minor(torch.__version__),
        **features,
        "images": images.content,
        "augmentation": images.data.model_dump(mode="json", include={"background", "crop", "crop_scale", "flip"}),
        "seed": request.seed,
        "batch_size": request.batch_size,
        "dtype": str(pick_dtype(request.dtype, device)),
        "device": computed_on(device),
    }


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
) -> Scores:
    """Scores of a copy of a model after fine-tuning."""
    report = steps_of(progress, f"{name}, finetune")
    data = images.train.augmented(images.data)
    found = fine_tune(
        model, data, images.num_classes, training, num_workers=images.data.num_workers, report=report, **options
    )
    progress.stop()
    progress.start(f"{name}, finetune: the test images", 0, test.total)
    accuracy = tuned_accuracy(found, test.batches(), options["device"], lambda done: progress.advance(done, {}))
    progress.stop()
    return Scores(accuracy, test.total)
