"""`genaim evaluate fid` and `rfid`: figures of generated or reconstructed images, and a record that repeats them."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from apps.errors import Stopped
from apps.extractors import Named, load_extractor
from apps.folders import make_parent
from apps.progress import make_progress
from apps.quality_images import (
    Compared,
    allowed_classes,
    check_sizes,
    find_reference,
    floor_images,
    images_of,
    load_subject,
    subject_images,
)
from apps.quality_record import RECORD, TABLE, Row, folder_for, make_record, table, write_pictures, write_record
from apps.quality_request import QualityRequest, located
from apps.request import Settings
from genaim.core.hardware import pick_device
from genaim.core.progress import Progress
from genaim.data.sources import digest
from genaim.evaluation.chunks import collect, extract
from genaim.evaluation.image_sets import ImageSet
from genaim.evaluation.npz import write_npz
from genaim.evaluation.quality import PROTOCOLS, Reference, check_count, features_to_statistics, quality
from genaim.models import GenerativeModel
from genaim.tokenizers import fingerprint


@dataclass(frozen=True)
class Plan:
    """What is measured, before anything is."""

    extractor: Named
    compared: list[tuple[ImageSet, int]]
    """Images, and how many of them count; first those of the model."""
    references: list[Compared]
    settings: Settings | None
    """How the model is sampled."""
    weights: str | None
    """Fingerprint of the model."""
    device: torch.device

    def image_sets(self) -> list[ImageSet]:
        """All images whose features are needed."""
        return [images for images, _ in self.compared] + [r.images for r in self.references if r.images is not None]

    def folder(self, images: ImageSet, cache: Path) -> Path:
        """Where the features of images are kept; of other content, another folder."""
        return features_folder(cache, images, self.extractor, self.device)


def features_folder(cache: Path, images: ImageSet, extractor: Named, device: torch.device) -> Path:
    """Where the features of images are kept; of another content, extractor or kind of device, another folder."""
    return cache / "features" / digest(images.key, extractor.digest, device.type)


def evaluate_quality(
    request: QualityRequest,
    out: Path | None = None,
    *,
    cache: Path,
    command: Sequence[str],
    save: str | None = None,
    extractor_weights: str | None = None,
) -> dict[str, Any] | None:
    """Measures, prints the table, and writes the record.

    Args:
        request: What is asked for.
        out: Folder to write; None takes one under ``evaluations`` that is named by the request.
        cache: Folder where features are kept, so that the same command goes on where it was interrupted.
        command: The command line that repeats this.
        save: ``png`` or ``npz`` keeps the images.
        extractor_weights: What the extractor's weights must be, as a record has them.

    Returns:
        The record; None in all processes but the first.

    Raises:
        ValueError: If the request does not fit the model, its data or the extractor.
        Stopped: After an interruption, with what is done kept.
    """
    request.check()
    request = located(request)
    target = folder_for(request, out)
    progress = make_progress(sys.stderr)
    try:
        plan = make_plan(request, progress, extractor_weights)
        state = PartialState(cpu=plan.device.type == "cpu")
        for images in plan.image_sets():
            extract(
                images,
                plan.extractor.extractor,
                plan.folder(images, cache),
                progress,
                keep=save is not None and images is plan.compared[0][0],
                process=state.process_index,
                processes=state.num_processes,
            )
        state.wait_for_everyone()
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; the same command goes on: {shlex.join(command)}") from None
    finally:
        progress.stop()
    if not state.is_main_process:
        return None
    rows = measure(request, plan, cache)
    record = make_record(request, plan.settings, plan.weights, rows, plan.extractor, command, plan.device.type)
    target.mkdir(parents=True, exist_ok=True)
    write_record(target, record)  # first: its folder is then known as this measurement's
    if save is not None:
        images, count = plan.compared[0]
        write_pictures(target, plan.folder(images, cache), count, save)
    print("\n".join(table(record["figures"])))
    print(f"written: {target / RECORD} and {target / TABLE}")
    return record


def make_plan(request: QualityRequest, progress: Progress, extractor_weights: str | None = None) -> Plan:
    """Loads what is needed and finds out whether it fits together.

    Raises:
        ValueError: If it does not.
    """
    device = pick_device(request.sampling.device if request.sampling else "auto")
    extractor = load_extractor(request.extractor, request.weights, device, progress)
    if extractor_weights not in (None, extractor.weights):
        raise ValueError(
            f"extractor '{extractor.name}' has weights {extractor.weights}, but the record was made with "
            f"{extractor_weights}; give those by --weights."
        )
    model = load_subject(request, device, progress)
    classes = allowed_classes(request, model)
    references = [find_reference(request, given, model, classes, extractor) for given in request.references]
    subject, settings = subject_images(request, model, references, device)
    count = subject.count
    if isinstance(model, GenerativeModel) and request.sampling is not None:
        count = request.sampling.count  # the last chunk, which is generated whole, may be needed in part
    compared = [(subject, count)]
    if request.floor:
        compared.append((floor_images(references[0], count), count))
    check_count(count, "images")
    for reference in references:
        check_sizes(subject, reference)
        if reference.images is not None:
            check_count(reference.images.count, f"images of '{reference.name}'")
    weights = None if model is None else fingerprint(model)
    return Plan(extractor, compared, references, settings, weights, device)


def measure(request: QualityRequest, plan: Plan, cache: Path) -> list[Row]:
    """The figures of all images against all references, from features that are there."""
    layers = plan.extractor.extractor.layers
    names = [layer for layer in (layers.features, layers.logits) if layer is not None]
    features = {s.key: collect(plan.folder(s, cache), s.count, names) for s in plan.image_sets()}
    rows = []
    for images, count in plan.compared:
        generated = {name: found[:count] for name, found in features[images.key].items()}
        for reference in plan.references:
            known, number = None, None
            if reference.images is not None:
                known, number = features[reference.images.key][layers.features], reference.images.count
            figures = quality(
                generated,
                Reference(known, reference.statistics),
                layers,
                PROTOCOLS[request.protocol],
                bootstrap=request.bootstrap,
            )
            rows.append(Row(images.name, count, reference.name, number, figures))
    return rows


def write_statistics(
    data: str, out: Path, *, size: int | None, extractor: str, weights: str | None, device: str, cache: Path
) -> None:
    """Writes mu and sigma of images in ADM's layout, with the extractor's name beside them.

    Raises:
        ValueError: If there are no such images, or too few.
    """
    if out.suffix != ".npz":
        raise ValueError(f"--out is '{out}'; it must end in .npz.")
    make_parent(out)
    progress = make_progress(sys.stderr)
    where = pick_device(device)
    named = load_extractor(extractor, weights, where, progress)
    images = images_of(data, size)
    check_count(images.count, "images")
    folder = features_folder(cache, images, named, where)
    extract(images, named.extractor, folder, progress)
    layer = named.extractor.layers.features
    found = features_to_statistics(collect(folder, images.count, [layer])[layer])
    write_npz(out, mu=found.mu, sigma=found.sigma, extractor=named.digest)
    print(f"statistics of {images.count:,} images: {out}")
