"""What a benchmark must know of its machine: what it is, its limits, and how much memory something takes."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.sample import libraries, machine
from genaim.core.hardware import cpu_capabilities, fast_bfloat16
from genaim.core.inference import InferenceLinear, can_pack

ROWS, WIDTH, OUT = 1024, 1024, 4096  # of the matrix product that is the ceiling
INSTRUCTIONS = ("avx2", "avx512_bf16", "amx_bf16")


def describe(device: torch.device) -> dict[str, Any]:
    """What a report says of the machine."""
    found = cpu_capabilities()
    instructions = [name for name in INSTRUCTIONS if found.get(name)] if device.type == "cpu" else []
    return {**machine(device.type), **libraries(), "instructions": instructions, "cores": os.cpu_count()}


def ceilings(device: torch.device) -> dict[str, float]:
    """The fastest matrix products in FLOP/s by number format, and memory traffic of a copy in bytes/s."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    found = {name: product_rate(device, dtype) for name, dtype in dtypes.items()}
    big = torch.zeros(2**26, device=device)
    target = torch.empty_like(big)
    return {**found, "copy": 2 * big.nbytes / fastest(lambda: target.copy_(big), device, 5)}


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product, by the better of PyTorch's layer and packed weights."""
    rows = ROWS if device.type == "cpu" else 8 * ROWS
    x = torch.randn(rows, WIDTH, device=device).to(dtype)
    weight = torch.randn(OUT, WIDTH, device=device).to(dtype)
    ways: list[Callable[[], Tensor]] = [lambda: F.linear(x, weight)]
    if can_pack(device, dtype) and (dtype == torch.float32 or fast_bfloat16(device)):
        packed = InferenceLinear(weight, None, dtype)
        ways.append(lambda: packed(x))
    return 2 * rows * WIDTH * OUT / min(fastest(way, device, 5) for way in ways)


def fastest(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of several runs, after one that does not count."""
    work()
    return min(timed(work, device)[0] for _ in range(repeats))


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a run, until the device is done, and its result."""
    wait(device)
    began = time.perf_counter()
    result = work()
    wait(device)
    return time.perf_counter() - began, result


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Peak:
    """The most memory in use while something ran, in bytes; 0 where the system does not tell."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watches memory: the device's on CUDA, else that of this process, read a hundred times a second."""
    peak, done = Peak(), threading.Event()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return

    def watch() -> None:
        while not done.wait(0.01):
            peak.bytes = max(peak.bytes, resident_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def resident_memory() -> int:
    """Bytes of this process in memory; 0 where there is no /proc."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
