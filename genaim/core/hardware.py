"""Which device and number format to use; the answer comes from the hardware and is never assumed."""

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from genaim.config import one_line

PATIENCE = timedelta(days=7)
"""Of processes for each other: the first may download, encode a data set or compute figures for hours."""


def pick_device(name: str) -> torch.device:
    """The device of a name, such as cuda or cuda:1; auto takes cuda, then mps, then cpu.

    Raises:
        ValueError: If the device is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind, colon, number = name.partition(":")
    if kind not in available:
        raise ValueError(f"unknown device '{name}'; use auto, cpu, cuda or mps.")
    if not available[kind]:
        here = ", ".join(k for k, there in available.items() if there)
        raise ValueError(f"device '{name}' is not available on this machine; use auto, or one of: {here}.")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if colon and number not in map(str, range(count)):
        there = kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}"
        raise ValueError(f"there is no device '{name}'; use auto, or {there}.")
    return torch.device(name)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32.

    A CPU needs AVX512-BF16 or AMX: with them bfloat16 was measured 2.8 times faster, without them 4 times slower.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        found = cpu_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False


def cpu_capabilities() -> Mapping[str, Any]:
    """What PyTorch knows of the CPU; before version 2.11 only whether it has fast bfloat16."""
    if hasattr(torch.cpu, "get_capabilities"):
        found: Mapping[str, Any] = torch.cpu.get_capabilities()
        return found
    return {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a name; auto takes bfloat16 where `fast_bfloat16`, else float32.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise ValueError(f"unknown dtype '{name}'; use auto, {' or '.join(known)}.")
    return known[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products and convolutions in ``dtype``; nothing changes for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def compile_parts(model: nn.Module, kinds: tuple[type[nn.Module], ...], device: torch.device) -> str | None:
    """Lets `torch.compile` compile the parts of a model when they first run, equal ones together.

    Args:
        model: Its parts are changed in place; names of weights stay.
        kinds: Classes of the parts, such as blocks.
        device: Where they compute.

    Returns:
        Why nothing is compiled here, such as a missing C++ compiler, or None.
    """
    found = [module for module in model.modules() if isinstance(module, kinds)]
    if not found:
        return "the model has no part that is compiled"
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever stage fails, with errors of its own
        return one_line(error)
    for module in found:
        module.compile()
    return None
