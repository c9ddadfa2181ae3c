"""Features of many images, in chunks that survive an interruption and are shared by processes.

Chunk k holds images 64 k to 64 k + 63, is computed whole by one process, and is a file that is there or is not. So the
features are the same for any number of processes, and after any number of interruptions, as long as each process
computes with as many threads (`OMP_NUM_THREADS`): matrix libraries round differently with their number.

Processes find each other's chunks in one folder. On several machines it must be on a file system that they share.
"""

import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from genaim.core.progress import Progress, duration
from genaim.evaluation.extractors import Extractor
from genaim.evaluation.image_sets import CHUNK, ImageSet, num_chunks
from genaim.files import file_written_whole

PICTURES = "pictures"  # beside the layers in a chunk's file


def extract(
    images: ImageSet,
    extractor: Extractor,
    folder: Path,
    progress: Progress,
    *,
    keep: bool = False,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Computes the chunks of this process that are not there yet.

    Args:
        images: They are asked for by whole chunks; the last may be shorter.
        extractor: Turns them into features, on the device that it is on.
        folder: Where the chunks are; the same for all processes.
        progress: Where the course is told: before the first chunk how many there are, after it the expected time.
        keep: Whether the images are kept beside their features.
        process: Number of this process.
        processes: How many there are.

    Raises:
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    what, count = f"features of {images.name}", images.count
    chunks = [k for k in range(num_chunks(count)) if k % processes == process]
    missing = [k for k in chunks if not _complete(folder / _file(k), keep)]
    if not missing:
        return
    device = next((p.device for p in extractor.module.parameters()), torch.device("cpu"))
    done, began = len(chunks) - len(missing), time.monotonic()
    shared = f", as one of {processes} processes" if processes > 1 else ""
    progress.say(f"{what}: {len(missing):,} of {len(chunks):,} chunks of {CHUNK} to compute{shared}")
    progress.start(what, done, len(chunks))
    try:
        for number, k in enumerate(missing):
            levels = images.images(range(k * CHUNK, min(count, (k + 1) * CHUNK)))
            tensors = extractor(levels.to(device))
            _write(folder / _file(k), tensors | ({PICTURES: levels.contiguous()} if keep else {}))
            progress.advance(done + number + 1, {})
            if number == 0 and len(missing) > 1:
                left = duration((time.monotonic() - began) * (len(missing) - 1))
                progress.say(f"{what}: about {left} for {len(missing) - 1} more of {CHUNK} images each")
    finally:
        progress.stop()


def collect(folder: Path, count: int, layers: list[str]) -> dict[str, Tensor]:
    """The features of the first ``count`` images, (count, F) by layer, once all chunks are there."""
    files = [folder / _file(k) for k in range(num_chunks(count))]
    parts = [load_file(path) for path in files]
    return {layer: torch.cat([part[layer] for part in parts])[:count] for layer in layers}


def pictures(folder: Path, chunk: int) -> Tensor:
    """The images that a chunk kept, (n, 3, H, W) uint8."""
    return load_file(folder / _file(chunk))[PICTURES]


def _file(chunk: int) -> str:
    return f"{chunk:06d}.safetensors"


def _complete(path: Path, keep: bool) -> bool:
    """Whether a chunk is there, with its images where they are wanted. A file that is there is whole."""
    if not path.exists():
        return False
    with safe_open(path, "pt") as chunk:
        return not keep or PICTURES in chunk.keys()  # noqa: SIM118, it is no dict


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with file_written_whole(path) as temporary:
        save_file(tensors, temporary)
