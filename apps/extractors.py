"""From what ``--extractor`` and ``--weights`` say to a feature extractor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apps.folders import hash_file
from genaim.core.progress import Progress
from genaim.evaluation.extractors import CIFAR, ENCODER, INCEPTION, Extractor, check_pickle, make_extractor
from genaim.evaluation.quality import fidelity
from genaim.pretrained import load_encoder
from genaim.pretrained.download import Unreachable, download
from genaim.pretrained.fetch import home
from genaim.pretrained.official import RemoteFile
from genaim.tokenizers import fingerprint


@dataclass(frozen=True)
class Named:
    """An extractor with what a record tells of it."""

    name: str
    weights: str
    """First 16 digits of the SHA-256 of its weights."""
    extractor: Extractor

    @property
    def digest(self) -> str:
        """Equal for equal features."""
        return f"{self.name} {self.weights}"


def load_extractor(name: str, weights: str | None, device: torch.device, progress: Progress) -> Named:
    """A feature extractor with its weights, on a device.

    Raises:
        ValueError: If torch-fidelity is not installed, there is no such extractor, or its weights cannot be had.
    """
    fidelity("registry")
    if name == ENCODER:
        if weights is None:
            raise ValueError(f"extractor '{ENCODER}' needs a model; give a name or folder by --weights.")
        encoder = load_encoder(weights, device=device)
        return Named(name, fingerprint(encoder), make_extractor(name, device, encoder=encoder))
    path = None if weights is None else Path(weights)
    if path is not None and not path.is_file():
        raise ValueError(f"there is no file '{path}'; give the weights of extractor '{name}' by --weights.")
    if path is None and name == INCEPTION:
        path = inception_weights(progress)
    if path is not None and name != CIFAR:
        check_pickle(path)
    arguments: dict[str, Any] = {} if path is None else {"feature_extractor_weights_path": str(path)}
    try:
        extractor = make_extractor(name, device, **arguments)
    except RuntimeError as error:
        raise ValueError(f"'{path}' does not hold weights of '{name}': {' '.join(str(error).split())[:150]}") from None
    return Named(name, "none" if path is None else hash_file(path)[:16], extractor)


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
