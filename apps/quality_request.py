"""What `genaim evaluate fid` and `rfid` are asked for."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from apps.request import SampleRequest
from genaim.evaluation.image_sets import LabelRule
from genaim.evaluation.quality import PROTOCOLS, check_count
from genaim.pretrained.names import is_named

WORDS = ("train", "val")  # references of the model's own recipe


@dataclass(frozen=True)
class QualityRequest:
    """What is asked for; everything that decides the figures is here."""

    kind: Literal["fid", "rfid"]
    """Generation FID or a tokenizer's reconstruction FID."""
    sampling: SampleRequest | None
    """The generator and how it is sampled; of rfid the tokenizer's name; None compares ``images``."""
    images: str | None = None
    """Folder of images, or an npz file with ``arr_0``, instead of a model."""
    references: tuple[str, ...] = ("train",)
    """``train`` and ``val`` of the model's recipe, recipes, data sets, folders, npz files."""
    reference_count: int | None = None
    """At most so many images of each, evenly; None takes all."""
    labels: LabelRule = "balanced"
    """How the classes of generated images are chosen."""
    extractor: str = "inception-v3-compat"
    """Name of the feature extractor."""
    weights: str | None = None
    """Its weights."""
    protocol: str = "fidelity"
    """In `PROTOCOLS`."""
    bootstrap: int = 0
    """Resamplings for the standard error of FID."""
    floor: bool = False
    """Whether other real images of the first reference are compared too."""

    def check(self) -> None:
        """Raises ValueError for what nothing can honour."""
        if (self.sampling is None) == (self.images is None):
            raise ValueError("give --model NAME to generate images, or --images FOLDER to compare those; one of them.")
        if self.sampling is not None:
            self.sampling.check(*(["generator"] if self.kind == "fid" else ["tokenizer", "generator"]))
            if self.kind == "fid":
                check_count(self.sampling.count, "generated images (-n)")
        if not self.references:
            raise ValueError("there is nothing to compare with; give --reference.")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"there is no protocol '{self.protocol}'; choose from {', '.join(PROTOCOLS)}.")
        if self.bootstrap == 1 or self.bootstrap < 0:
            raise ValueError(f"--bootstrap is {self.bootstrap}; give 0 for none, or 2 or more.")
        for reference in self.references:
            if self.sampling is None and reference in WORDS:
                raise ValueError(f"'{reference}' is part of a model's recipe; with --images give --reference FOLDER.")


def located(request: QualityRequest) -> QualityRequest:
    """The request with whole paths, so that its record can be replayed from any folder."""

    def whole(name: str) -> str:
        given = name in WORDS or name.startswith("{")
        return name if given or not Path(name).exists() else str(Path(name).resolve())

    sampling = request.sampling
    if sampling is not None and not is_named(sampling.model):
        sampling = replace(sampling, model=whole(sampling.model))
    return replace(
        request,
        sampling=sampling,
        images=request.images and whole(request.images),
        references=tuple(map(whole, request.references)),
        weights=request.weights and whole(request.weights),
    )


def request_to_dict(request: QualityRequest) -> dict[str, Any]:
    """JSON-able, for `request_from_dict`."""
    values = {f.name: getattr(request, f.name) for f in fields(request)}
    if request.sampling is not None:
        values["sampling"] = {f.name: getattr(request.sampling, f.name) for f in fields(request.sampling)}
    return values


def request_from_dict(values: dict[str, Any]) -> QualityRequest:
    """The request of a record."""
    sampling = values.get("sampling")
    if sampling is not None:
        sampling = SampleRequest(**{**sampling, "classes": tuple(sampling["classes"])})
    return QualityRequest(**{**values, "sampling": sampling, "references": tuple(values["references"])})
