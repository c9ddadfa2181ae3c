"""What decides numbers that are kept beside their inputs: code, versions of libraries, and what computes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch


def hash_code(files: Iterable[Path]) -> str:
    """Hash of source files: after an edit there, results are computed anew."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def minor(version: str) -> str:
    """A version without its last part, which is that of bug fixes: kernels and rounding change with minor ones."""
    return ".".join(version.split(".")[:2])


def computed_on(device: torch.device) -> tuple[str, int | None]:
    """The kind of device, and of a CPU the number of threads, with which matrix libraries round differently."""
    return device.type, torch.get_num_threads() if device.type == "cpu" else None
