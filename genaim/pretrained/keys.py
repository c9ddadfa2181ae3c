"""Key tables: how a family's checkpoints name what genaim calls otherwise.

A table is a list of (pattern, replacement) for whole keys, tried in order; a replacement of None drops the key (buffers
that follow from the config). Loading is strict on both sides: a key that no pattern knows, or a weight that no key
fills, raises.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    module.load_state_dict(fitted, assign=any(v.is_meta for v in fitted.values()))


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A flat state dict from safetensors or a ``torch.save`` file; pickled objects other than tensors are refused.

    Raises:
        ValueError: If the file cannot be read safely.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint '{path}' does not exist; give a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from None
    except Exception:  # unpickling fails with many types; the reason is always the content
        raise ValueError(
            f"{path} is not a plain PyTorch checkpoint, or holds objects that could run code; it was not opened. "
            "Convert it to safetensors where it comes from."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no flat state dict of tensors; extract the model's weights first.")
    return state
