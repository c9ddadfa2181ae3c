"""Official VAR checkpoints (github.com/FoundationVision/VAR): the tokenizer ``vae_ch160v4096z32`` and d16 to d36."""

from collections.abc import Mapping

import torch
from torch import Tensor

from genaim.models import VAR
from genaim.pretrained.keys import CONVOLUTIONAL, KeyTable, load_strict, rename
from genaim.tokenizers import MultiScaleVQ

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


def load_official_vqvae(tokenizer: MultiScaleVQ, state: Mapping[str, Tensor]) -> None:
    """Fills a tokenizer from an official VQVAE state dict.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    renamed = rename(state, VQVAE_KEYS, "VAR tokenizer")
    renamed["codebook.usage"] = torch.zeros_like(tokenizer.codebook.usage)  # not published
    load_strict(tokenizer, renamed, "VAR tokenizer")


def load_official_var(model: VAR, state: Mapping[str, Tensor]) -> None:
    """Fills a VAR transformer from an official state dict; its tokenizer stays as it is.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    renamed = rename(state, VAR_KEYS, "VAR")
    renamed |= {f"tokenizer.{k}": v for k, v in model.tokenizer.state_dict().items()}
    load_strict(model, renamed, "VAR")
