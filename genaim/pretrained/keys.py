"""Key tables: how a family's checkpoints name what genaim calls otherwise.

A table is a list of (pattern, replacement) for whole keys, tried in order; a replacement of None drops the key (buffers
that follow from the config). Loading is strict on both sides: a key that no pattern knows, or a weight that no key
fills, raises.
"""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

KeyTable = Sequence[tuple[str, str | None]]

CONVOLUTIONAL: KeyTable = [
    # a resolution level, a block in it
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.nin_shortcut\.(.+)", r"\1.levels.\2.blocks.\3.shortcut.\4"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(.+)", r"\1.levels.\2.blocks.\3"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.attn\.(\d+)\.proj_out\.(.+)", r"\1.levels.\2.attentions.\3.proj.\4"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.attn\.(.+)", r"\1.levels.\2.attentions.\3"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(?:downsample|upsample)\.(.+)", r"\1.levels.\2.resample.\3"),
    (r"(encoder|decoder)\.mid\.block_1\.(.+)", r"\1.middle.0.\2"),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.(.+)", r"\1.middle.1.proj.\2"),
    (r"(encoder|decoder)\.mid\.attn_1\.(.+)", r"\1.middle.1.\2"),
    (r"(encoder|decoder)\.mid\.block_2\.(.+)", r"\1.middle.2.\2"),
    (r"((?:encoder|decoder)\.(?:conv_in|norm_out|conv_out)\..+)", r"\1"),
    (r"((?:quant_conv|post_quant_conv)\..+)", r"\1"),
]
"""The encoder and decoder of `genaim.tokenizers.autoencoder`, as VAR and MAR both publish them."""


def rename(state: Mapping[str, Tensor], table: KeyTable, family: str) -> dict[str, Tensor]:
    """Our names for a checkpoint's tensors.

    Raises:
        ValueError: If a key is not of this family.
    """
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in table:
            match = re.fullmatch(pattern, key)
            if match:
                if replacement is not None:
                    renamed[match.expand(replacement)] = value
                break
        else:
            raise ValueError(f"key '{key}' is not of an official {family} checkpoint; check that the file is one.")
    return renamed


def load_strict(module: nn.Module, state: Mapping[str, Tensor], family: str) -> None:
    """Fills a module, reshaping tensors that differ in axes of size 1 only (official tables carry such axes).

    Raises:
        ValueError: If names or shapes do not fit.
    """
    wanted = module.state_dict()
    problems = [f"missing {k}" for k in wanted.keys() - state.keys()]
    problems += [f"unknown {k}" for k in state.keys() - wanted.keys()]
    fitted = {}
    for key in wanted.keys() & state.keys():
        shapes = [[s for s in tensor.shape if s != 1] for tensor in (state[key], wanted[key])]
        if shapes[0] == shapes[1]:
            fitted[key] = state[key].reshape(wanted[key].shape)
        else:
            problems.append(f"{key} is {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}")
    if problems:
        raise ValueError(f"the {family} checkpoint does not fit the model: {'; '.join(sorted(problems)[:4])}.")
    nowhere = any(tensor.is_meta for tensor in (*fitted.values(), *wanted.values()))
    module.load_state_dict(fitted, assign=nowhere)  # a module on the meta device has no memory to copy into


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many blocks a checkpoint has: one more than the largest number that ``pattern`` captures in its keys."""
    numbers = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


def autoencoder_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of the convolutional encoder and decoder whose official weights `CONVOLUTIONAL` renames."""
    channels = state["encoder.conv_in.weight"].shape[0]
    levels = range(count(state, r"encoder\.down\.(\d+)\."))
    return {
        "channels": channels,
        "channel_multipliers": [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // channels for i in levels],
        "num_res_blocks": count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": state["post_quant_conv.weight"].shape[0],
        "decoder_attention": count(state, r"decoder\.up\.\d+\.attn\.(\d+)\.") > 0,
    }


def read_state(path: str | Path, container: Sequence[str] = ()) -> dict[str, Tensor]:
    """A flat state dict from safetensors or a ``torch.save`` file; pickled objects are refused, and nothing is run.

    Besides tensors and plain values an ``argparse.Namespace`` is let through, which official files carry as their
    ``args``: reading one calls no code but that of the empty standard class.

    Args:
        path: The file.
        container: Keys that lead to the weights in files of this family that hold more, such as ``model_ema``.

    Raises:
        ValueError: If the file cannot be read safely, or holds no state dict there.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint '{path}' does not exist; give a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from None
    except Exception as error:  # unpickling fails with many types; the reason is always the content
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds '{named[1]}', which could run code" if named else "is not a plain PyTorch checkpoint"
        raise ValueError(f"{path} {what}; it was not opened. Convert it to safetensors where it comes from.") from None
    found: Any = state
    if isinstance(state, dict) and container and container[0] in state:
        for key in container:
            found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        keys = f"its keys are {', '.join(map(str, state))}"[:200] if isinstance(state, dict) else "it is no dictionary"
        inside = f", nor one in '{'.'.join(container)}'" if container else ""
        raise ValueError(f"{path} holds no flat state dict of tensors{inside} ({keys}); extract the weights first.")
    return found
