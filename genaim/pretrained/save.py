"""Writes models: a folder with ``config.json`` and safetensors weights, which `genaim.pretrained.names` describes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from genaim.config import one_line
from genaim.files import replace_folder
from genaim.models import AttentiveProbe, Encoder, GenerativeModel
from genaim.pretrained.names import FORMAT, read_config
from genaim.tokenizers import Tokenizer

Saved = GenerativeModel | Encoder | Tokenizer | AttentiveProbe
CARD = "README.md"
PARTS = ("tokenizer", "probe")
FILES = [f"{part}{name}" for part in ("", *(f"{p}/" for p in PARTS)) for name in ("config.json", "model.safetensors")]
"""What a model folder is made of, beside the card."""


def check_model_folder(folder: Path) -> None:
    """Makes sure that `save_model` into a folder loses nothing but a model: it is absent, empty, or holds one alone.

    Raises:
        ValueError: If it holds anything else.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"'{folder}' is not a plain folder; choose another one.")
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    names = (path.as_posix() for path in paths if not _stays(path.parts[0]))
    foreign = next((name for name in names if name not in {*FILES, *PARTS}), None)
    if foreign is not None:
        raise ValueError(
            f"folder '{folder}' holds other files than a model, such as '{foreign}'; choose another one, or move them."
        )
    if (folder / "config.json").is_file():
        try:
            read_config(folder)
        except ValueError as error:
            raise ValueError(f"'{folder}' holds no readable model ({one_line(error)}); choose another.") from None
    elif any(not _stays(path.name) or path.name == CARD for path in folder.iterdir()):
        raise ValueError(f"folder '{folder}' holds other files than a model: it has no config.json; choose another.")


def _stays(name: str) -> bool:
    """Whether a new model leaves it: the card, which may be written by hand, its pictures, and git's and the Hub's."""
    return name == CARD or name.endswith(".png") or name.startswith(".")


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
        folder: Where to; an existing model there is replaced, except for its ``README.md``, pictures and hidden files.
        module: Generator, encoder, tokenizer or probe.
        dtype: Format of the stored weights.
        shared_tokenizer: Name of a bundled or official tokenizer to refer to, instead of a copy.
        tokenizer_changes: Config keys in which the generator's tokenizer differs from the shared one.
        probe: What reads classes off the encoder's features; it is kept beside it.

    Raises:
        ValueError: If the folder holds something else than a model.
    """
    check_model_folder(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(temporary, module, dtype, shared_tokenizer, tokenizer_changes or {})
        if probe is not None:
            save_model(temporary / "probe", probe, dtype=dtype)
        for path in (path for path in folder.glob("*") if _stays(path.name)):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, temporary / path.name)
        replace_folder(folder, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
