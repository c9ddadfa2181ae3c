"""References in the npz layout of ADM (Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233).

``mu`` and ``sigma`` are statistics of features, ``arr_0`` images, as in the folder evaluations of its repository.
"""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genaim.evaluation.image_sets import ImageSet, from_array
from genaim.evaluation.quality import Statistics


@dataclass(frozen=True)
class StatisticsFile:
    """An ADM-compatible npz file."""

    statistics: Statistics | None
    """``mu`` and ``sigma``."""
    images: ImageSet | None
    """``arr_0``."""
    extractor: str | None
    """The extractor that genaim has written down; None in files of others, which are of Inception."""


def read_npz(path: Path) -> StatisticsFile:
    """Reads a reference of the ADM repository, or of ours.

    Raises:
        ValueError: If the file is broken, or holds neither statistics nor images.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, Any] = {k: file[k] for k in ("mu", "sigma", "arr_0", "extractor") if k in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"'{path}' is no readable npz file ({' '.join(str(error).split())[:100]}).") from None
    statistics = None
    if {"mu", "sigma"} <= found.keys():
        mu, sigma = found["mu"], found["sigma"]
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"'{path}' has mu {mu.shape} and sigma {sigma.shape}; they must be (F,) and (F, F).")
        statistics = Statistics(mu, sigma)
    images = from_array(path.name, found["arr_0"]) if "arr_0" in found else None
    if statistics is None and images is None:
        raise ValueError(f"'{path}' holds neither mu and sigma nor images arr_0; give an npz file of a reference.")
    return StatisticsFile(statistics, images, str(found["extractor"]) if "extractor" in found else None)


def write_npz(path: Path, **arrays: np.ndarray | str) -> None:
    """Writes an npz file under another name and moves it into place."""
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}.npz")
    try:
        content: Any = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez(temporary, **content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
