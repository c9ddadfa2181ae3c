"""What `genaim evaluate fid` and `rfid` are asked for."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from apps.request import DEVICES, SampleRequest
from apps.splits import load_mapping
from genaim.evaluation.image_sets import LabelRule
from genaim.evaluation.quality import PROTOCOLS, check_count
from genaim.pretrained.names import is_named

WORDS = ("train", "val")  # references of the model's own recipe
NOT_OURS = ("device", "batch_size")  # of a SampleRequest: the device is the request's, the batch a chunk


@dataclass(frozen=True)
class QualityRequest:
    """What is asked for. Figures are repeated by this with equal files, weights, libraries and number of threads."""

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
    preset: str = "fidelity"
    """How figures are computed, in `PROTOCOLS`."""
    bootstrap: int = 0
    """Resamplings for the standard error of FID."""
    floor: bool = False
    """Whether other real images of the first reference are compared too."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

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
        if self.preset not in PROTOCOLS:
            raise ValueError(f"there is no preset '{self.preset}'; choose from {', '.join(PROTOCOLS)}.")
        if self.bootstrap == 1 or self.bootstrap < 0:
            raise ValueError(f"--bootstrap is {self.bootstrap}; give 0 for none, or 2 or more.")
        if self.device.partition(":")[0] not in DEVICES:
            raise ValueError(f"--device is '{self.device}'; use auto, cpu, cuda or mps.")
        for reference in self.references:
            if self.sampling is None and reference in WORDS:
                raise ValueError(
                    f"'{reference}' is part of a model's recipe; with --images give --reference FOLDER or RECIPE."
                )


def located(request: QualityRequest) -> QualityRequest:
    """The request with whole paths, so that its record can be replayed from any folder."""

    def whole(name: str) -> str:
        if name.lstrip().startswith("{"):
            return json.dumps(_with_whole_paths(load_mapping(name)))
        return name if name in WORDS else _whole_path(name)

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


def _whole_path(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _with_whole_paths(value: Any) -> Any:
    """A mapping as `data_for` takes it, with every ``path`` whole."""
    if isinstance(value, list):
        return [_with_whole_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _whole_path(item) if key == "path" and isinstance(item, str) else _with_whole_paths(item)
        for key, item in value.items()
    }


def request_to_dict(request: QualityRequest) -> dict[str, Any]:
    """JSON-able; a record is read back by `apps.quality_record.Record`."""
    values = {f.name: getattr(request, f.name) for f in fields(request)}
    if (sampling := request.sampling) is not None:
        values["sampling"] = {f.name: getattr(sampling, f.name) for f in fields(sampling) if f.name not in NOT_OURS}
    return values
