"""Writes models: a folder with ``config.json`` and safetensors weights, which `genaim.pretrained.names` describes."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genaim.models import AttentiveProbe, Encoder, GenerativeModel
from genaim.pretrained.names import FORMAT
from genaim.tokenizers import Tokenizer

Saved = GenerativeModel | Encoder | Tokenizer | AttentiveProbe


def save_model(
    folder: Path,
    module: Saved,
    *,
    dtype: torch.dtype = torch.float32,
    shared_tokenizer: str | None = None,
    tokenizer_changes: Mapping[str, Any] | None = None,
    probe: AttentiveProbe | None = None,
) -> None:
    """Writes a model folder, whole or not at all.

    Args:
        folder: Where to; an existing model there is replaced.
        module: Generator, encoder, tokenizer or probe.
        dtype: Format of the stored weights.
        shared_tokenizer: Name of a bundled or official tokenizer to refer to, instead of a copy.
        tokenizer_changes: Config keys in which the generator's tokenizer differs from the shared one.
        probe: What reads classes off the encoder's features; it is kept beside it.

    Raises:
        ValueError: If the folder holds something else than a model.
    """
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise ValueError(f"folder '{folder}' holds other files than a model; choose another one, or empty it.")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(temporary, module, dtype, shared_tokenizer, tokenizer_changes or {})
        if probe is not None:
            save_model(temporary / "probe", probe, dtype=dtype)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(
    folder: Path,
    module: Saved,
    dtype: torch.dtype,
    shared_tokenizer: str | None,
    tokenizer_changes: Mapping[str, Any],
) -> None:
    """The files of a model folder."""
    config: dict[str, Any]
    if isinstance(module, GenerativeModel):
        state = module.state_dict_without_tokenizer()
        model, tokenizer = module.config.model_dump(mode="json"), shared_tokenizer or "tokenizer"
        config = {"kind": "generator", "model": model, "tokenizer": tokenizer}
        if tokenizer_changes:
            config["tokenizer_changes"] = dict(tokenizer_changes)
        if shared_tokenizer is None:
            save_model(folder / "tokenizer", module.tokenizer, dtype=dtype)
    else:
        state = module.state_dict()
        plain = module.config.model_dump(mode="json")
        if isinstance(module, Tokenizer):
            config = {"kind": "tokenizer", "tokenizer": plain}
        else:
            config = {"kind": "encoder" if isinstance(module, Encoder) else "probe", "model": plain}
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).cpu().contiguous() for k, v in state.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"format": FORMAT, **config}, indent=1))
