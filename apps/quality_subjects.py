"""What `genaim evaluate fid` and `rfid` measure: images that a model generates or reconstructs, or that are there."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genaim
import samplers
from apps.cache_keys import computed_on, hash_code
from apps.quality_references import LoadedReference, images_of
from apps.quality_request import QualityRequest
from apps.request import Settings, resolve, sampling_arguments
from genaim.core.hardware import pick_dtype
from genaim.core.progress import Progress
from genaim.data.sources import digest
from genaim.evaluation.image_sets import CHUNK, ImageSet, choose_labels, chunked, generated, reconstructed
from genaim.models import GenerativeModel
from genaim.pretrained import from_pretrained, load_generator
from genaim.tokenizers import Tokenizer, fingerprint
from samplers import generate, prepare
from samplers.labels import class_numbers

Subject = GenerativeModel | Tokenizer | ImageSet
"""What is measured: a model, on its device, or images that are there."""


def load_subject(request: QualityRequest, device: torch.device, progress: Progress) -> tuple[Subject, str | None]:
    """The model whose images are measured and the fingerprint of its weights, or images and None.

    Raises:
        ValueError: If there are none, or the model has other weights than the request says.
    """
    if request.sampling is None:
        assert request.images is not None
        return images_of(request.images, None), None
    model = _load(request.kind, request.sampling.model, device, progress)
    weights = fingerprint(model)
    if request.sampling.weights not in (None, weights):
        raise ValueError(
            f"model '{request.sampling.model}' has weights {weights}, but the record was made with "
            f"{request.sampling.weights}."
        )
    return model, weights


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


def subject_size(subject: Subject) -> tuple[int, int]:
    """Height and width of the images that are measured."""
    if isinstance(subject, ImageSet):
        return subject.size
    side = subject.tokenizer.image_size if isinstance(subject, GenerativeModel) else subject.image_size
    return side, side


def numbering(request: QualityRequest, subject: Subject) -> Sequence[str] | None:
    """The class names that a reference must agree with; None where its labels do not matter."""
    if not isinstance(subject, GenerativeModel) or request.sampling is None:
        return None
    return subject.config.class_names if request.sampling.classes or request.labels == "data" else None


def allowed_classes(request: QualityRequest, model: Subject) -> list[int] | None:
    """The classes that are generated and compared; None where there is no choice.

    Raises:
        ValueError: If the model has no such classes.
    """
    if not isinstance(model, GenerativeModel) or request.sampling is None:
        return None
    given = request.sampling.classes
    if not given:
        return None
    if not any(name.strip() for name in given):
        raise ValueError("the list of classes is empty; name one or more, or leave --classes out for all.")
    if not model.config.num_classes:
        raise ValueError(f"model '{request.sampling.model}' has no classes; leave out --classes.")
    return class_numbers(given, model.config)


def subject_images(
    request: QualityRequest,
    model: Subject,
    weights: str | None,
    references: Sequence[LoadedReference],
    device: torch.device,
) -> tuple[ImageSet, Settings | None]:
    """The images that are measured, and the settings that they are sampled with; None where nothing is.

    Args:
        request: What is asked for.
        model: A generator, a tokenizer, or images that are there.
        weights: Fingerprint of the model.
        references: What the images are compared with.
        device: Where the model is.

    Raises:
        ValueError: If there is nothing to reconstruct, or the request does not fit the model.
    """
    if isinstance(model, ImageSet):
        return model, None
    assert request.sampling is not None and weights is not None
    name = Path(request.sampling.model).name
    if not isinstance(model, GenerativeModel):
        source = references[0].images
        if source is None or len(references) > 1:
            raise ValueError("a tokenizer reconstructs the images of one --reference, which must hold images.")
        identity = digest(weights, model.config.model_dump(mode="json"), made_by(device))
        return reconstructed(f"{name}, reconstructed", source, model, identity, device), None
    dtype = pick_dtype(request.sampling.dtype, device)
    sampling = replace(request.sampling, classes=(), batch_size=CHUNK)
    settings = resolve(sampling, model.config, weights, device, dtype)
    labels, rule = all_labels(request, model, references)
    arguments = sampling_arguments(settings, dtype)

    @cache
    def ready() -> GenerativeModel:  # when all is known of its weights
        prepare(model, dtype)
        return model

    def sample(labels: Tensor, first_index: int) -> Tensor:
        return generate(ready(), labels, first_index=first_index, **arguments)

    # Without the count and what follows from it: more images continue those that there are.
    decisive = {k: v for k, v in settings.items() if k not in ("count", "labels", "names", "batch_size", "model")}
    configs = [model.config.model_dump(mode="json"), model.tokenizer.config.model_dump(mode="json")]
    key = digest("generated", configs, decisive, rule, made_by(device))
    return generated(name, key, labels, model.tokenizer.image_size, sample), settings


def made_by(device: torch.device) -> tuple[str, tuple[str, int | None]]:
    """What decides the pixels that a model makes, beside the model and what it is asked for; JSON-able."""
    return pixel_code(), computed_on(device)


@cache
def pixel_code() -> str:
    """Hash of the source files that models are made of and sampled by, and that make 8-bit pixels of what they give."""
    package = Path(genaim.__path__[0])
    rooms = [*(package / room for room in ("core", "heads", "models", "tokenizers")), Path(samplers.__path__[0])]
    files = [path for room in rooms for path in sorted(room.glob("*.py"))]
    return hash_code([*files, package / "data/transforms.py", package / "evaluation/image_sets.py", Path(__file__)])


def all_labels(
    request: QualityRequest, model: GenerativeModel, references: Sequence[LoadedReference]
) -> tuple[Tensor, list[Any]]:
    """The class of every image, in whole chunks, and what decides it for any number of images."""
    assert request.sampling is not None
    count = chunked(request.sampling.count)
    if not model.config.num_classes:
        return torch.zeros(count, dtype=torch.int64), []  # the null class
    classes = allowed_classes(request, model) or list(range(model.config.num_classes))
    first, labels = references[0], None
    if request.labels == "data" and first.data is not None:
        labels = first.data.labels(first.chosen)
    rule = [request.labels, classes, None if labels is None else labels[labels >= 0].bincount().tolist()]
    return choose_labels(request.labels, count, classes, request.sampling.seed, labels), rule
