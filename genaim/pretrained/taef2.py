"""The published files of TAEF2 (github.com/madebyollin/taesd): an encoder and a decoder, keyed by layer number."""

from pathlib import Path

import torch
from torch import Tensor

from genaim.pretrained.keys import KeyTable, load_strict, read_state, rename
from genaim.tokenizers import TAEF2, TAEF2Config

PARTS = ("encoder", "decoder")
SUFFIXES = (".safetensors", ".pth")


def part_keys(part: str) -> KeyTable:
    """The key table of one file."""
    return [(r"(\d+\.(?:weight|bias|(?:conv|pool)\..+))", rf"{part}.\1")]


def load_taef2(folder: str | Path, config: TAEF2Config | None = None) -> TAEF2:
    """The tokenizer with published weights.

    Args:
        folder: Holds ``taef2_encoder`` and ``taef2_decoder``, as ``.safetensors`` or ``.pth``.
        config: Sizes of images and tokens; None takes the defaults.

    Raises:
        ValueError: If a file is missing, cannot be read safely or is of another network.
    """
    tokenizer = TAEF2((config or TAEF2Config()).model_copy(update={"source": None}))
    state: dict[str, Tensor] = {"latent_scale": torch.clone(tokenizer.latent_scale)}
    for part in PARTS:
        state |= rename(read_state(_file(Path(folder), part)), part_keys(part), "TAEF2")
    load_strict(tokenizer, state, "TAEF2")
    return tokenizer.eval()


def _file(folder: Path, part: str) -> Path:
    """The file of a part."""
    files = [folder / f"taef2_{part}{suffix}" for suffix in SUFFIXES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ValueError(f"'{folder}' lacks {files[0].name}; give the folder that holds TAEF2's encoder and decoder.")
    return found
