"""The images that `genaim evaluate fid` and `rfid` measure, and those that they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.extractors import Named
from apps.quality_request import WORDS, QualityRequest
from apps.request import Settings, resolve
from apps.splits import data_for, is_recipe, source_names, whole_split
from genaim.core.hardware import pick_dtype
from genaim.core.progress import Progress
from genaim.data import ImageDataset
from genaim.data.sources import digest
from genaim.evaluation.extractors import INCEPTION
from genaim.evaluation.image_sets import (
    ImageSet,
    choose_labels,
    chunked,
    evenly,
    from_folder,
    generated,
    real,
    reconstructed,
)
from genaim.evaluation.npz import StatisticsFile, read_npz
from genaim.evaluation.quality import Statistics
from genaim.heads import SamplingOptions
from genaim.models import GenerativeModel
from genaim.pretrained import from_pretrained, load_generator
from genaim.tokenizers import Tokenizer, fingerprint
from samplers import generate
from samplers.labels import class_numbers


@dataclass(frozen=True)
class Compared:
    """A reference: images, or statistics alone."""

    name: str
    images: ImageSet | None
    statistics: Statistics | None = None
    data: ImageDataset | None = None
    """The data set that the images are of."""
    chosen: tuple[int, ...] = ()
    """Which of its images are compared."""
    others: tuple[int, ...] = ()
    """Which could have been, and are not."""


def load_subject(
    request: QualityRequest, device: torch.device, progress: Progress
) -> GenerativeModel | Tokenizer | None:
    """The model whose images are measured, on its device.

    Raises:
        ValueError: If it cannot do that, or has other weights than the request says.
    """
    if request.sampling is None:
        return None
    model = _load(request.kind, request.sampling.model, device, progress)
    if request.sampling.weights not in (None, found := fingerprint(model)):
        raise ValueError(
            f"model '{request.sampling.model}' has weights {found}, but the record was made with "
            f"{request.sampling.weights}."
        )
    return model


def _load(kind: str, name: str, device: torch.device, progress: Progress) -> GenerativeModel | Tokenizer:
    if kind == "fid":
        generator = load_generator(name, device=device, progress=progress)
        if generator.config.low_res is not None:
            raise ValueError(f"model '{name}' enlarges pictures and draws none by itself; give another.")
        return generator
    model = from_pretrained(name, progress=progress)
    tokenizer = model.tokenizer if isinstance(model, GenerativeModel) else model
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"'{name}' has no tokenizer to reconstruct images; give a tokenizer.")
    return tokenizer.to(device).eval()


def allowed_classes(request: QualityRequest, model: GenerativeModel | Tokenizer | None) -> list[int] | None:
    """The classes that are generated and compared; None where there is no choice."""
    if not isinstance(model, GenerativeModel) or request.sampling is None:
        return None
    given = request.sampling.classes
    if not given:
        return None
    if not any(name.strip() for name in given):
        raise ValueError("the list of classes is empty; name one or more, or leave --classes out for all.")
    return class_numbers(given, model.config)


def find_reference(
    request: QualityRequest,
    given: str,
    model: GenerativeModel | Tokenizer | None,
    classes: Sequence[int] | None,
    extractor: Named,
) -> Compared:
    """The images or statistics of a reference.

    Raises:
        ValueError: If there are none, or they are of another extractor.
    """
    if given.endswith(".npz"):
        file = read_npz(Path(given))
        check_extractor(given, file, extractor)
        return Compared(Path(given).name, file.images, file.statistics)
    if model is None or request.sampling is None:
        return Compared(given, from_folder(Path(given)))
    part = given if given in WORDS else "train"
    config = data_for(request.sampling.model, None if given in WORDS else given)
    side = model.tokenizer.image_size if isinstance(model, GenerativeModel) else model.image_size
    class_names = None
    if isinstance(model, GenerativeModel) and (classes is not None or request.labels == "data"):
        class_names = model.config.class_names  # else the labels of the reference do not matter
    data = whole_split(config, part, image_size=side, class_names=class_names)
    candidates: Sequence[int] = range(len(data))
    if classes is not None:
        found = data.labels(candidates)
        candidates = [i for i in candidates if int(found[i]) in classes]
    chosen = evenly(candidates, request.reference_count)
    others = sorted(set(candidates) - set(chosen))
    name = source_names(config, part)
    return Compared(name, real(name, data, chosen), data=data, chosen=tuple(chosen), others=tuple(others))


def images_of(given: str, size: int | None) -> ImageSet:
    """Images by themselves: of a recipe or data set, prepared as for validation, or of files as they are.

    Raises:
        ValueError: If there are none.
    """
    path = Path(given)
    if path.suffix == ".npz":
        images = read_npz(path).images
        if images is None:
            raise ValueError(f"'{path}' holds statistics and no images arr_0; give images.")
        return images
    if size is None and path.is_dir():
        return from_folder(path)
    if not path.exists() and not is_recipe(given) and not given.startswith("{"):
        raise ValueError(f"there is no '{given}'; give a folder of images, an npz file of arr_0, or a recipe.")
    if size is None and not is_recipe(given):
        raise ValueError(f"the images of '{given}' may differ in size; give the side that they get by --size.")
    config = data_for(given, given)
    data = whole_split(config, "train", image_size=size)
    return real(source_names(config, "train"), data, range(len(data)))


def check_extractor(name: str, file: StatisticsFile, extractor: Named) -> None:
    """Raises ValueError if a file has statistics of another extractor; ADM's do not say it, and are of Inception."""
    of = file.extractor or INCEPTION
    if file.statistics is not None and of not in (extractor.name, extractor.digest):
        raise ValueError(
            f"'{name}' holds statistics of extractor '{of}', and this is '{extractor.digest}'; use one for both."
        )


def subject_images(
    request: QualityRequest,
    model: GenerativeModel | Tokenizer | None,
    references: Sequence[Compared],
    device: torch.device,
) -> tuple[ImageSet, Settings | None]:
    """The images that are measured, and the settings that they are sampled with.

    Raises:
        ValueError: If there are none.
    """
    if model is None:
        assert request.images is not None
        return images_of(request.images, None), None
    assert request.sampling is not None
    name = Path(request.sampling.model).name
    if not isinstance(model, GenerativeModel):
        source = references[0].images
        if source is None or len(references) > 1:
            raise ValueError("a tokenizer reconstructs the images of one --reference, which must hold images.")
        identity = digest(fingerprint(model), model.config.model_dump(mode="json"))
        return reconstructed(f"{name}, reconstructed", source, model, identity, device), None
    dtype = pick_dtype(request.sampling.dtype, device)
    settings = resolve(replace(request.sampling, classes=()), model.config, fingerprint(model), device, dtype)
    labels, rule = all_labels(request, model, references)
    options = SamplingOptions(**settings["options"])

    def sample(labels: Tensor, first_index: int) -> Tensor:
        return generate(
            model,
            labels,
            seed=settings["seed"],
            first_index=first_index,
            options=options,
            guidance_scale=settings["guidance_scale"],
            num_steps=settings["num_steps"],
            dtype=dtype,
        )

    # Without the count and what follows from it: more images continue those that there are.
    decisive = {k: v for k, v in settings.items() if k not in ("count", "labels", "names", "batch_size", "model")}
    configs = [model.config.model_dump(mode="json"), model.tokenizer.config.model_dump(mode="json")]
    key = digest("generated", configs, decisive, rule, torch.get_num_threads() if device.type == "cpu" else None)
    return generated(name, key, labels, model.tokenizer.image_size, sample), settings


def all_labels(
    request: QualityRequest, model: GenerativeModel, references: Sequence[Compared]
) -> tuple[Tensor, list[Any]]:
    """The class of every image, in whole chunks, and what decides it for any number of images."""
    assert request.sampling is not None
    count = chunked(request.sampling.count)
    if not model.config.num_classes:
        if request.sampling.classes:
            raise ValueError(f"model '{request.sampling.model}' has no classes; leave out --classes.")
        return torch.zeros(count, dtype=torch.int64), []  # the null class
    classes = allowed_classes(request, model) or list(range(model.config.num_classes))
    first, labels = references[0], None
    if request.labels == "data" and first.data is not None:
        labels = first.data.labels(first.chosen)
    rule = [request.labels, classes, None if labels is None else labels[labels >= 0].bincount().tolist()]
    return choose_labels(request.labels, count, classes, request.sampling.seed, labels), rule


def floor_images(reference: Compared, count: int) -> ImageSet:
    """As many other images of a reference's data set.

    Raises:
        ValueError: If there are not so many.
    """
    if reference.data is None:
        raise ValueError("--floor needs a data set as the first --reference.")
    if len(reference.others) < count:
        raise ValueError(
            f"--floor needs {count} images besides the reference's {len(reference.chosen)}, and '{reference.name}' has "
            f"{len(reference.others)} more; lower -n or --reference-count."
        )
    return real(f"{reference.name}, others", reference.data, evenly(reference.others, count))


def check_sizes(images: ImageSet, reference: Compared) -> None:
    """Raises ValueError if images and reference differ in size, which extractors would hide by resizing."""
    if reference.images is not None and reference.images.size != images.size:
        (height, width), (other_height, other_width) = images.size, reference.images.size
        raise ValueError(
            f"'{images.name}' has images of {width}x{height} pixels and reference '{reference.name}' of "
            f"{other_width}x{other_height}; resize one of them."
        )
