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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


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
    """
    root = run / "checkpoints"
    final, temporary = root / f"step-{step:08d}", root / f".tmp-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for stem, named in tensors.items():
        path = temporary / f"{stem}.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in named.items()}, path)
        _sync(path)
    (temporary / "state.json").write_text(json.dumps({**state, "step": step}))
    _sync(temporary / "state.json")
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
    return tensors, json.loads((folder / "state.json").read_text())


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as named tensors ``parameter/entry``, gathered from all shards."""
    state: Any = get_optimizer_state_dict(module, optimizer, options=_FULL)["state"]
    return {f"{name}/{key}": value for name, entries in state.items() for key, value in entries.items()}


def load_optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts `optimizer_tensors` back."""
    full = get_optimizer_state_dict(module, optimizer, options=_FULL)
    state: dict[str, Any] = {}
    for name, value in tensors.items():
        parameter, _, entry = name.rpartition("/")
        state.setdefault(parameter, {})[entry] = value
    set_optimizer_state_dict(module, optimizer, {"state": state, "param_groups": full["param_groups"]}, options=_FULL)


def _sync(path: Path) -> None:
    """Forces a file or folder to disk, so that a rename never shows a half-written file after a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
