"""`genaim evaluate fid` and `rfid`: figures of generated or reconstructed images, and a record that repeats them."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from apps.cache_keys import computed_on
from apps.errors import Stopped
from apps.extractors import NamedExtractor, load_extractor
from apps.folders import check_writable, make_parent
from apps.progress import make_progress
from apps.quality_record import (
    RECORD,
    TABLE,
    Row,
    changed_references,
    check_same_extractor,
    folder_for,
    make_record,
    table,
    write_pictures,
    write_record,
)
from apps.quality_references import LoadedReference, check_sizes, find_reference, floor_images, images_of
from apps.quality_request import QualityRequest, located
from apps.quality_subjects import allowed_classes, load_subject, numbering, subject_images, subject_size
from apps.request import Settings
from genaim.core.hardware import PATIENCE, pick_device
from genaim.core.progress import Progress
from genaim.data.sources import digest
from genaim.evaluation.chunks import collect, extract
from genaim.evaluation.image_sets import ImageSet, size_in_words
from genaim.evaluation.npz import write_npz
from genaim.evaluation.quality import PROTOCOLS, Reference, check_count, features_to_statistics, quality


@dataclass(frozen=True)
class Plan:
    """What is measured, before anything is."""

    extractor: NamedExtractor
    compared: list[tuple[ImageSet, int]]
    """Images, and how many of them count; first those of the model."""
    references: list[LoadedReference]
    settings: Settings | None
    """How the model is sampled."""
    weights: str | None
    """Fingerprint of the model."""
    device: torch.device

    def image_sets(self) -> list[ImageSet]:
        """All images whose features are needed; references first, so that their broken files are found early."""
        return [r.images for r in self.references if r.images is not None] + [images for images, _ in self.compared]

    def folder(self, images: ImageSet, cache: Path) -> Path:
        """Where the features of images are kept; of other content, another folder."""
        return features_folder(cache, images, self.extractor, self.device)


def features_folder(cache: Path, images: ImageSet, extractor: NamedExtractor, device: torch.device) -> Path:
    """Where features of images are kept: of other content, extractor, kind of device or thread count, elsewhere."""
    return cache / "features" / digest(images.key, extractor.cache_key, *computed_on(device))


def evaluate_quality(
    request: QualityRequest,
    out: Path | None = None,
    *,
    cache: Path,
    command: Sequence[str],
    save: str | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Measures, prints the table, and writes the record.

    Args:
        request: What is asked for.
        out: Folder to write; None takes one under ``evaluations`` that is named by the request.
        cache: Folder where features are kept, so that the same command goes on where it was interrupted.
        command: The command line that repeats this.
        save: ``png`` or ``npz`` keeps the images.
        earlier: The record that is repeated; what cannot give its figures is refused or told before the work.

    Returns:
        The record; None in all processes but the first.

    Raises:
        ValueError: If the request does not fit the model, its data or the extractor.
        Stopped: After an interruption, with what is done kept.
    """
    request.check()
    request = located(request)
    target = folder_for(request, out)
    check_writable(target, "--out")
    with _long_work(cache, command) as progress:
        state, device = join_processes(request.device)
        plan = make_plan(request, state, device, progress, earlier)
        for change in changed_references([(r.name, r.digest) for r in plan.references], earlier):
            progress.say(f"note: {change}; its figures cannot be repeated")
        kept = plan.compared[0][0] if save is not None else None
        extract_all(plan.image_sets(), plan.extractor, cache, state, device, progress, kept)
        if not state.is_main_process:
            return None
        rows = measure(request, plan, cache)
        notes = [note for reference in plan.references for note in reference.notes]
        record = make_record(request, plan.settings, plan.weights, rows, plan.extractor, command, device.type, notes)
        target.mkdir(parents=True, exist_ok=True)
        write_record(target, record)  # first: its folder is then known as this measurement's
        if save is not None:
            images, count = plan.compared[0]
            write_pictures(target, plan.folder(images, cache), count, save)
    print("\n".join(table(record["figures"])))
    print("\n".join([*(f"note: {note}" for note in notes), f"written: {target / RECORD} and {target / TABLE}"]))
    return record


@contextmanager
def _long_work(cache: Path, command: Sequence[str]) -> Iterator[Progress]:
    """Progress of work whose features are kept, so that the same command goes on after an interruption."""
    check_writable(cache, "--cache")
    progress = make_progress(sys.stderr)
    try:
        yield progress
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; the same command goes on: {shlex.join(command)}") from None
    finally:
        progress.stop()


def join_processes(device: str) -> tuple[PartialState, torch.device]:
    """This process among those of ``accelerate launch``, and its own device of that name.

    The state comes before anything is put on a device: it is what tells processes on several GPUs apart.

    Raises:
        ValueError: If the device is not there.
    """
    found = pick_device(device)
    state = PartialState(cpu=found.type == "cpu", timeout=PATIENCE)
    own: torch.device = state.device
    return state, own if str(found) == own.type else found  # a number is the user's choice


def make_plan(
    request: QualityRequest,
    state: PartialState,
    device: torch.device,
    progress: Progress,
    earlier: Mapping[str, Any] | None = None,
) -> Plan:
    """Loads what is needed and finds out whether it fits together.

    Raises:
        ValueError: If it does not, or the extractor is not that of the earlier record.
    """
    with state.main_process_first():  # of several processes one downloads
        extractor = load_extractor(request.extractor, request.weights, device, progress)
        subject, weights = load_subject(request, device, progress)
    check_same_extractor(extractor, earlier)
    classes = allowed_classes(request, subject)
    size, names = subject_size(subject), numbering(request, subject)
    references = [find_reference(request, given, size, classes, names, extractor) for given in request.references]
    images, settings = subject_images(request, subject, weights, references, device)
    # Generated are whole chunks, of which the last may be needed in part.
    count = images.count if settings is None else settings["count"]
    compared = [(images, count)]
    if request.floor:
        compared.append((floor_images(references[0], count), count))
    check_count(count, "images")
    for reference in references:
        check_sizes(images, reference)
        if reference.images is not None:
            check_count(reference.images.count, f"images of '{reference.name}'")
    return Plan(extractor, compared, references, settings, weights, device)


def extract_all(
    sets: Sequence[ImageSet],
    extractor: NamedExtractor,
    cache: Path,
    state: PartialState,
    device: torch.device,
    progress: Progress,
    kept: ImageSet | None = None,
) -> None:
    """Computes this process's share of the features that are missing, and waits for the others.

    Args:
        sets: The images.
        extractor: Of the features.
        cache: Where they are kept.
        state: The processes that share the work.
        device: Where this process computes.
        progress: Told of every set what of it is to compute.
        kept: Images that are kept beside their features.
    """
    folders = {features_folder(cache, images, extractor, device): images for images in sets}
    for folder, images in folders.items():
        extract(
            images,
            extractor.extractor,
            folder,
            progress,
            keep=kept is not None and images.key == kept.key,
            process=state.process_index,
            processes=state.num_processes,
        )
    state.wait_for_everyone()


def measure(request: QualityRequest, plan: Plan, cache: Path) -> list[Row]:
    """The figures of all images against all references, from features that are there."""
    layers = plan.extractor.extractor.layers
    names = [layer for layer in (layers.features, layers.logits) if layer is not None]
    features = {s.key: collect(plan.folder(s, cache), s.count, names) for s in plan.image_sets()}
    rows = []
    for images, count in plan.compared:
        generated = {name: found[:count] for name, found in features[images.key].items()}
        for reference in plan.references:
            known = None if reference.images is None else features[reference.images.key][layers.features]
            figures = quality(
                generated,
                Reference(known, reference.statistics),
                layers,
                PROTOCOLS[request.preset],
                bootstrap=request.bootstrap,
            )
            rows.append(
                Row(
                    images=images.name,
                    images_count=count,
                    images_size=size_in_words(images.size),
                    images_digest=images.key,
                    reference=reference.name,
                    reference_count=reference.count,
                    reference_size=size_in_words(reference.size),
                    reference_digest=reference.digest,
                    reference_kind="statistics" if reference.images is None else "images",
                    figures=figures,
                )
            )
    return rows


def write_statistics(
    data: str,
    out: Path,
    *,
    size: int | None,
    extractor: str,
    weights: str | None,
    device: str,
    cache: Path,
    command: Sequence[str],
) -> None:
    """Writes mu and sigma of images in ADM's layout; the extractor, the size and the number of images beside them.

    Raises:
        ValueError: If there are no such images, or too few.
        Stopped: After an interruption, with what is done kept.
    """
    if out.suffix != ".npz":
        raise ValueError(f"--out is '{out}'; it must end in .npz.")
    check_writable(out.parent, "--out")
    make_parent(out)
    with _long_work(cache, command) as progress:
        state, own = join_processes(device)
        with state.main_process_first():
            named = load_extractor(extractor, weights, own, progress)
        images = images_of(data, size)
        check_count(images.count, "images")
        extract_all([images], named, cache, state, own, progress)
        if not state.is_main_process:
            return
        layer = named.extractor.layers.features
        folder = features_folder(cache, images, named, own)
        found = features_to_statistics(collect(folder, images.count, [layer])[layer])
        about: dict[str, Any] = {"extractor": named.identity, "count": images.count, "image_size": images.size}
        write_npz(out, mu=found.mu, sigma=found.sigma, **about)
    print(f"statistics of {images.count:,} images: {out}")
