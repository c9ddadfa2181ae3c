"""Official MAR checkpoints (github.com/LTH14/mar): the tokenizer ``kl16.ckpt`` and the models B, L and H."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genaim.models import MAR
from genaim.models.mar import PRESETS
from genaim.pretrained.keys import CONVOLUTIONAL, KeyTable, autoencoder_shape, count, load_strict, rename
from genaim.tokenizers import KLAutoencoder, KLAutoencoderConfig

KL16_SCALE = 0.2325  # stands in the official code, not in its files

MAR_KEYS: KeyTable = [
    (r"fake_latent", r"null_class"),
    (r"class_emb\.weight", r"classes"),
    (r"(encoder|decoder)_pos_embed_learned", r"\1_positions"),
    (r"diffusion_pos_embed_learned", r"output_positions"),
    (r"mask_token", r"mask_token"),
    (r"z_proj\.(.+)", r"token_embed.\1"),
    (r"z_proj_ln\.(.+)", r"token_norm.\1"),
    (r"(decoder_embed\..+)", r"\1"),
    (r"(encoder|decoder)_(blocks|norm)\.(.+)", r"\1.\2.\3"),
    (r"diffloss\.net\.time_embed\.mlp\.(.+)", r"head.net.time_embed.\1"),
    (r"diffloss\.net\.cond_embed\.(.+)", r"head.net.condition_embed.\1"),
    (r"diffloss\.net\.input_proj\.(.+)", r"head.net.token_embed.\1"),
    (r"diffloss\.net\.res_blocks\.(\d+)\.in_ln\.(.+)", r"head.net.blocks.\1.norm.\2"),
    (r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.0\.(.+)", r"head.net.blocks.\1.fc1.\2"),
    (r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.2\.(.+)", r"head.net.blocks.\1.fc2.\2"),
    (r"diffloss\.net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.(.+)", r"head.net.blocks.\1.modulation.\2"),
    (r"diffloss\.net\.final_layer\.adaLN_modulation\.1\.(.+)", r"head.net.norm_modulation.\1"),
    (r"diffloss\.net\.final_layer\.linear\.(.+)", r"head.net.out.\1"),
]


def load_official_mar(model: MAR, state: Mapping[str, Tensor]) -> None:
    """Fills a MAR from an official state dict (of a published file the one under ``model_ema``).

    The null class, which is stored apart, becomes the last row of the class table; the tokenizer stays as it is.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    renamed = rename(state, MAR_KEYS, "MAR")
    if "classes" in renamed and "null_class" in renamed:
        renamed["class_embed.table.weight"] = torch.cat([renamed.pop("classes"), renamed.pop("null_class")])
    renamed |= {f"tokenizer.{k}": v for k, v in model.tokenizer.state_dict().items()}
    load_strict(model, renamed, "MAR")


def kl16_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of a KL autoencoder from the shapes of its official weights, which take images of any size."""
    return {"kind": "kl", "autoencoder": autoencoder_shape(state), "latent_scale": KL16_SCALE}


def mar_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of a MAR from the shapes of its official weights.

    Raises:
        ValueError: If it is of no published size: the number of attention heads leaves no trace in the shapes.
    """
    size = {
        "encoder_depth": count(state, r"encoder_blocks\.(\d+)\."),
        "decoder_depth": count(state, r"decoder_blocks\.(\d+)\."),
        "width": state["mask_token"].shape[-1],
        "head": {
            "kind": "diffusion",
            "depth": count(state, r"diffloss\.net\.res_blocks\.(\d+)\."),
            "hidden": state["diffloss.net.input_proj.weight"].shape[0],
        },
        "num_buffer": state["encoder_pos_embed_learned"].shape[1] - state["diffusion_pos_embed_learned"].shape[1],
    }
    for name, preset in PRESETS.items():
        if size == {key: ({"num_buffer": 64} | preset)[key] for key in size}:
            return {"kind": "mar", "preset": name, "num_classes": state["class_emb.weight"].shape[0]}
    raise ValueError(
        f"no published MAR has this size, whose number of attention heads cannot be seen: {size}; these are known: "
        f"{', '.join(PRESETS)}."
    )


def mar_tokenizer(state: Mapping[str, Tensor], tokenizer: KLAutoencoderConfig) -> dict[str, Any]:
    """What a MAR's weights tell of its tokenizer: the side of its images, and that of a token in latent cells."""
    tokens, channels = state["diffusion_pos_embed_learned"].shape[1], state["z_proj.weight"].shape[1]
    patch = math.isqrt(channels // tokenizer.autoencoder.latent_channels)
    return {"image_size": math.isqrt(tokens) * patch * tokenizer.autoencoder.downsampling, "patch_size": patch}


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
