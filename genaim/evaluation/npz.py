"""References in the npz layout of ADM (Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233).

``mu`` and ``sigma`` are statistics of features, ``arr_0`` images, as in the folder evaluations of its repository.
Statistics of ours come with ``extractor``, ``count`` and ``image_size`` (height, width), which ADM's do not say.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genaim.config import one_line
from genaim.evaluation.image_sets import ImageSet, from_array
from genaim.evaluation.quality import Statistics
from genaim.files import file_written_whole

KEYS = ("mu", "sigma", "arr_0", "extractor", "count", "image_size")


@dataclass(frozen=True)
class ReferenceFile:
    """An ADM-compatible npz file."""

    statistics: Statistics | None
    """``mu`` and ``sigma``."""
    images: ImageSet | None
    """``arr_0``."""
    extractor: str | None
    """The extractor that genaim has written down; None in files of others, which are of Inception."""
    count: int | None
    """Number of images behind the statistics, where it is written down."""
    size: tuple[int, int] | None
    """Their height and width, likewise."""


def read_npz(path: Path) -> ReferenceFile:
    """Reads a reference of the ADM repository, or of ours.

    Raises:
        ValueError: If the file is broken, or holds neither statistics nor images.
    """
    found = _read_arrays(path)
    statistics = None
    if {"mu", "sigma"} <= found.keys():
        mu, sigma = found["mu"], found["sigma"]
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"'{path}' has mu {mu.shape} and sigma {sigma.shape}; they must be (F,) and (F, F).")
        statistics = Statistics(mu, sigma)
    images = from_array(path.name, found["arr_0"]) if "arr_0" in found else None
    if statistics is None and images is None:
        raise ValueError(f"'{path}' holds neither mu and sigma nor images arr_0; give an npz file of a reference.")
    try:
        count = int(found["count"]) if "count" in found else None
        height, width = map(int, found["image_size"]) if "image_size" in found else (0, 0)
    except (TypeError, ValueError):
        raise ValueError(f"'{path}' has a count or image_size that is no number; write it anew.") from None
    extractor = str(found["extractor"]) if "extractor" in found else None
    return ReferenceFile(statistics, images, extractor, count, (height, width) if height else None)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array, an npy file")
        with file:
            return {key: file[key] for key in KEYS if key in file.files}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        # NumPy takes any text for a pickle
        why = "no zip archive" if "pickle" in str(error) else one_line(error)
        raise ValueError(
            f"'{path}' is no readable npz file ({why}); give one of ADM's layout: images arr_0, or mu and sigma."
        ) from None


def write_npz(path: Path, **arrays: np.ndarray | str | int | tuple[int, int]) -> None:
    """Writes an npz file, whole or not at all."""
    content: Any = {name: np.asarray(array) for name, array in arrays.items()}
    with file_written_whole(path) as temporary:
        np.savez(temporary, **content)
