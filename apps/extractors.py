"""From what ``--extractor`` and ``--weights`` say to a feature extractor, and what decides its features."""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from apps.cache_keys import minor
from apps.folders import hash_file
from genaim.core.progress import Progress
from genaim.data.sources import digest
from genaim.evaluation.extractors import CIFAR, ENCODER, INCEPTION, Extractor, check_pickle, make_extractor
from genaim.evaluation.extractors import source_digest as hash_sources
from genaim.evaluation.quality import fidelity
from genaim.pretrained import load_encoder
from genaim.pretrained.download import Unreachable, download
from genaim.pretrained.fetch import home
from genaim.pretrained.official import RemoteFile
from genaim.tokenizers import fingerprint


@dataclass(frozen=True)
class NamedExtractor:
    """An extractor with what decides its features."""

    name: str
    extractor: Extractor
    weights: str
    """Fingerprint of its parameters and buffers."""
    code: str
    """Hash of the source files of its classes."""
    config: str | None = None
    """Digest of the config of an encoder, which the same weights may have another of."""

    def record(self) -> dict[str, str | None]:
        """What a record tells of it; equal for the same extractor.

        The code is that of a class of one's own. Ours and torch-fidelity's are known by their names, so that records
        and statistics outlive an edit of a comment there.
        """
        return {
            "name": self.name,
            "weights": self.weights,
            "config": self.config,
            "code": self.code if ":" in self.name else None,
            "layer": self.extractor.layers.features,
            "logits": self.extractor.layers.logits,
        }

    @property
    def identity(self) -> str:
        """The name with a digest of what else decides the features of FID; statistics of it can be compared."""
        decisive = {key: value for key, value in self.record().items() if key != "logits"}
        return f"{self.name} {digest(decisive)[:16]}"

    @property
    def cache_key(self) -> str:
        """Digest of everything that decides the features to the last bit, other than the device."""
        versions = [minor(torch.__version__), minor(version("torch-fidelity"))]
        return digest(self.record(), self.code, versions)


def load_extractor(name: str, weights: str | None, device: torch.device, progress: Progress) -> NamedExtractor:
    """A feature extractor with its weights, on a device.

    Raises:
        ValueError: If torch-fidelity is not installed, there is no such extractor, or its weights cannot be had.
    """
    fidelity("registry")
    config: str | None = None
    arguments: dict[str, Any] = {}
    path = None
    if name == ENCODER:
        if weights is None:
            raise ValueError(f"extractor '{ENCODER}' needs a model; give a name or folder by --weights.")
        encoder = load_encoder(weights, device=device, progress=progress)
        config, arguments = digest(encoder.config.model_dump(mode="json")), {"encoder": encoder}
    else:
        path = find_weights(name, weights, progress)
        arguments = {} if path is None else {"feature_extractor_weights_path": str(path)}
    if ":" in name and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # an installed command does not look for modules in the current folder
    extractor = _make(name, device, path, arguments)
    return NamedExtractor(name, extractor, fingerprint(extractor.module), hash_sources(extractor.module), config)


def _make(name: str, device: torch.device, path: Path | None, arguments: dict[str, Any]) -> Extractor:
    try:
        return make_extractor(name, device, **arguments)
    except RuntimeError as error:
        if path is None:
            raise
        raise ValueError(f"'{path}' does not hold weights of '{name}': {' '.join(str(error).split())[:150]}") from None


def find_weights(name: str, given: str | None, progress: Progress) -> Path | None:
    """The weights file of an extractor, looked at before anything unpickles it; None where it needs none.

    Of torch-fidelity's extractors Inception is downloaded. The others would download by themselves, and unchecked:
    theirs must be given, and DINOv2, which also runs code from there, cannot be used.

    Raises:
        ValueError: If there is no such file, or it is not what the extractor takes.
    """
    path = None if given is None else Path(given)
    if path is not None and not path.is_file():
        raise ValueError(f"there is no file '{path}'; give the weights of extractor '{name}' by --weights.")
    if name == INCEPTION:
        path = path or inception_weights(progress)
    elif name.startswith("dinov2-"):
        raise ValueError(
            f"extractor '{name}' of torch-fidelity downloads code and weights unchecked; take another --extractor, or "
            "a class of yours as MODULE:CLASS."
        )
    elif name.startswith("clip-"):
        return _published_clip(name, path)
    elif path is None and name == "vgg16":
        raise ValueError(
            f"extractor '{name}' would download its weights unchecked; give a file of torchvision's by --weights FILE."
        )
    own_safetensors = ":" in name and path is not None and path.suffix == ".safetensors"
    if path is not None and name != CIFAR and not own_safetensors:
        check_pickle(path)
    return path


def _published_clip(name: str, path: Path | None) -> Path:
    """CLIP's weights are a TorchScript program; only the published ones are run."""
    clip = fidelity("feature_extractor_clip")
    if name not in clip.MODEL_URLS:
        raise ValueError(f"there is no extractor '{name}'; torch-fidelity has {', '.join(clip.MODEL_URLS)}.")
    if path is None or hash_file(path) != clip.MODEL_METADATA[name]["hash"]:
        found = "needs its weights" if path is None else f"takes only its published weights, which '{path}' is not"
        raise ValueError(f"extractor '{name}' {found}; give the file of {clip.MODEL_URLS[name]} by --weights.")
    return path


def inception_weights(progress: Progress) -> Path:
    """Inception-v3 as torch-fidelity publishes it, downloaded once.

    Raises:
        ValueError: If it cannot be downloaded.
    """
    url: str = fidelity("feature_extractor_inceptionv3").URL_INCEPTION_V3
    name = url.rpartition("/")[2]
    published = name.removesuffix(".pth").rpartition("-")[2]  # the name ends with the start of its checksum
    try:
        return download(RemoteFile(name, address=url, sha256=published), home() / "extractors", progress)
    except Unreachable as error:
        raise ValueError(
            f"Inception weights cannot be downloaded ({error}); give the file of {url} by --weights, or take another "
            f"--extractor, such as {CIFAR}."
        ) from None
