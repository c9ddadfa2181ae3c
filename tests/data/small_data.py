"""Writers of small files in every format."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 250, 10), (10, 250, 250), (120, 60, 30)]


def png(color: tuple[int, ...], size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_idx(path: Path, array: np.ndarray) -> None:
    """The IDX file of unsigned bytes, gzip if the name says so."""
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """A tar file of names and contents, in that order."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
