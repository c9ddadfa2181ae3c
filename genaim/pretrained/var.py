"""Official VAR checkpoints (github.com/FoundationVision/VAR): the tokenizer ``vae_ch160v4096z32`` and d16 to d36."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genaim.models import VAR
from genaim.models.var import PRESETS
from genaim.pretrained.keys import CONVOLUTIONAL, KeyTable, autoencoder_shape, count, load_strict, rename
from genaim.tokenizers import MultiScaleVQ, MultiScaleVQConfig

VQVAE_KEYS: KeyTable = [
    *CONVOLUTIONAL,
    (r"quantize\.embedding\.weight", r"codebook.weight"),
    (r"quantize\.quant_resi\.qresi_ls\.(.+)", r"residual_convs.convs.\1"),
    (r"quantize\.ema_vocab_hit_SV", None),  # usage statistics
]

VAR_KEYS: KeyTable = [
    (r"pos_start", r"start_embed"),
    (r"pos_1LC", r"positions.positions"),
    (r"lvl_embed\.weight", r"positions.scales.weight"),
    (r"word_embed\.(.+)", r"token_embed.\1"),
    (r"class_emb\.weight", r"class_embed.table.weight"),
    (r"shared_ada_lin\.1\.(.+)", r"transformer.shared_modulation.\1"),
    (r"blocks\.(\d+)\.ada_gss", r"transformer.blocks.\1.modulation_offset"),
    (r"blocks\.(\d+)\.ada_lin\.1\.(.+)", r"transformer.blocks.\1.modulation.\2"),
    (r"blocks\.(\d+)\.attn\.scale_mul_1H11", r"transformer.blocks.\1.attn.log_scale"),
    (r"blocks\.(\d+)\.attn\.zero_k_bias", None),  # always zero
    (r"blocks\.(\d+)\.attn\.mat_qkv\.weight", r"transformer.blocks.\1.attn.qkv.weight"),
    (r"blocks\.(\d+)\.attn\.(q_bias|v_bias|proj\..+)", r"transformer.blocks.\1.attn.\2"),
    (r"blocks\.(\d+)\.ffn\.(.+)", r"transformer.blocks.\1.mlp.\2"),
    (r"head_nm\.ada_lin\.1\.(.+)", r"transformer.norm_modulation.\1"),
    (r"head\.(.+)", r"head.linear.\1"),
    (r"lvl_1L|attn_bias_for_masking", None),  # follow from patch_nums
]


PUBLISHED_SAMPLING = {"guidance_scale": 2.5, "top_k": 900, "top_p": 0.96}  # the published cfg of 1.5 is ours minus 1


def vqvae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of a VQVAE from the shapes of its official weights; they fit any list of scales."""
    return {
        "kind": "multiscale_vq",
        "autoencoder": autoencoder_shape(state),
        "codebook": {"size": state["quantize.embedding.weight"].shape[0]},
        "num_residual_convs": count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
    }


def var_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of a VAR from the shapes of its official weights; a published size gets its preset and its sampling."""
    hidden, width = state["blocks.0.ffn.fc1.weight"].shape
    size = {
        "depth": count(state, r"blocks\.(\d+)\."),
        "width": width,
        "num_heads": state["blocks.0.attn.scale_mul_1H11"].numel(),
        "mlp_ratio": hidden / width,
        "shared_adaln": "shared_ada_lin.1.weight" in state,
    }
    config = {"kind": "var", "num_classes": state["class_emb.weight"].shape[0] - 1}
    published = {"width": 64 * size["depth"], "num_heads": size["depth"], "mlp_ratio": 4.0, "shared_adaln": False}
    for name, preset in PRESETS.items():
        if {**published, **preset} == size:
            return config | {"preset": name, "sampling": PUBLISHED_SAMPLING}
    return config | size


def var_tokenizer(state: Mapping[str, Tensor], tokenizer: MultiScaleVQConfig) -> dict[str, Any]:
    """What a VAR's weights tell of its tokenizer: the sides of its scales, from the scale of every position."""
    sizes = torch.bincount(state["lvl_1L"].flatten().long()).tolist()
    return {"patch_nums": [math.isqrt(size) for size in sizes]}


def load_official_vqvae(tokenizer: MultiScaleVQ, state: Mapping[str, Tensor]) -> None:
    """Fills a tokenizer from an official VQVAE state dict.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    renamed = rename(state, VQVAE_KEYS, "VAR tokenizer")
    renamed["codebook.usage"] = torch.zeros(tokenizer.codebook.usage.shape)  # not published
    load_strict(tokenizer, renamed, "VAR tokenizer")


def load_official_var(model: VAR, state: Mapping[str, Tensor]) -> None:
    """Fills a VAR transformer from an official state dict; its tokenizer stays as it is.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    renamed = rename(state, VAR_KEYS, "VAR")
    renamed |= {f"tokenizer.{k}": v for k, v in model.tokenizer.state_dict().items()}
    load_strict(model, renamed, "VAR")
