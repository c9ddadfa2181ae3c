"""Official MAR checkpoints (github.com/LTH14/mar): the tokenizer ``kl16.ckpt``."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from genaim.pretrained.keys import CONVOLUTIONAL, load_strict, rename
from genaim.tokenizers import KLAutoencoder

KL16_SCALE = 0.2325  # stands in the official code, not in its files


def load_official_kl16(tokenizer: KLAutoencoder, state: Mapping[str, Tensor]) -> None:
    """Fills a tokenizer from an official KL-VAE state dict, which the published file nests under ``model``.

    The latent scale is that of the tokenizer's config, or the published one.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    renamed = fuse_qkv(rename(state, CONVOLUTIONAL, "MAR tokenizer"))
    scale = tokenizer.config.latent_scale or KL16_SCALE
    renamed["latent_scale"] = torch.full_like(tokenizer.latent_scale, scale)
    load_strict(tokenizer, renamed, "MAR tokenizer")


def fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins the separate ``q``, ``k`` and ``v`` of an attention, in this order, along the outputs."""
    fused = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+\.)([qkv])(\.(?:weight|bias))", key)
        if match is None:
            fused[key] = value
        elif match[2] == "q":
            parts = [state[name] for part in "qkv" if (name := f"{match[1]}{part}{match[3]}") in state]
            fused[f"{match[1]}qkv{match[3]}"] = torch.cat(parts)
    return fused
