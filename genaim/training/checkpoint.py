"""Checkpoints: safetensors and JSON only, written whole under a temporary name and renamed; the previous one is kept.

RUN/config.yaml                      the recipe as it was run
RUN/checkpoints/step-00000500/       weights.safetensors  ema.safetensors  optimizer.safetensors  state.json
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from genaim.config import one_line


def save_checkpoint(
    run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Writes one checkpoint atomically and removes all but the one before it.

    Args:
        run: The run folder.
        step: Steps that are done.
        tensors: File stem to named tensors.
        state: What else resuming needs, JSON-able.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: If it cannot be written; nothing of it remains.
    """
    root = run / "checkpoints"
    final, temporary = root / f"step-{step:08d}", root / f".tmp-{step:08d}"
    for unfinished in root.glob(".tmp-*"):
        shutil.rmtree(unfinished)
    temporary.mkdir(parents=True)
    try:
        for stem, named in tensors.items():
            path = temporary / f"{stem}.safetensors"
            save_file({k: v.detach().cpu().contiguous() for k, v in named.items()}, path)
            _sync(path)
        (temporary / "state.json").write_text(json.dumps({**state, "step": step}))
        _sync(temporary / "state.json")
        _sync(temporary)
    except (OSError, SafetensorError) as error:  # a full disk, as a rule
        shutil.rmtree(temporary, ignore_errors=True)
        reason = one_line(error)
        raise ValueError(f"{final} cannot be written ({reason}); the checkpoint before it is kept.") from None
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _sync(root)
    for old in checkpoints(run)[:-2]:
        shutil.rmtree(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(p for p in found if re.fullmatch(r"step-\d{8,}", p.name) and (p / "state.json").is_file())


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file stem, and the state."""
    tensors = {p.stem: load_file(p) for p in sorted(folder.glob("*.safetensors"))}
    return tensors, load_state(folder)


def load_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors: ``step`` and where the data stand."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as named tensors ``parameter/entry``; parameters that never had a gradient have none."""
    return {
        f"{name}/{entry}": value
        for name, parameter in module.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts `optimizer_tensors` back."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        # the count of steps is not shaped like the parameter, and not sharded
        sharded = value.shape == parameter.shape
        optimizer.state[parameter][entry] = placed_like(value, parameter) if sharded else value.to(parameter.device)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor where it is sharded over processes, else the tensor; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A full tensor placed, sharded and laid out in memory as ``reference`` is.

    The layout matters: PyTorch's fused AdamW reads parameter, gradient and moments in the order of memory, whatever
    their strides are, and convolutions may be channels-last.
    """
    if isinstance(reference, DTensor):
        return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)
    return torch.empty_like(reference, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _sync(path: Path) -> None:
    """Forces a file or folder to disk, so that a rename never shows a half-written file after a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
