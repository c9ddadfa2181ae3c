"""Real classes at tiny sizes: tokenizers of 8x8 pictures, heads, and models over them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from genaim.models import MODELS, VAR, GenerativeModel, VARConfig
from genaim.tokenizers import (
    KLAutoencoder,
    KLAutoencoderConfig,
    MultiScaleVQ,
    MultiScaleVQConfig,
    PixelPatches,
    PixelPatchesConfig,
    Tokenizer,
)

TOKENIZER: dict[str, Any] = {
    "kind": "multiscale_vq",
    "patch_nums": [1, 2, 4],
    "autoencoder": {
        "channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "latent_channels": 4,
        "norm_groups": 4,
    },
    "codebook": {"size": 32},
    "num_residual_convs": 3,
}


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested update."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


def make_tokenizer(**changes: Any) -> MultiScaleVQ:
    """Seeded; its codes are spread out, since fresh ones are too small to tell apart."""
    torch.manual_seed(0)
    tokenizer = MultiScaleVQ(MultiScaleVQConfig.model_validate(merge(TOKENIZER, changes)))
    torch.nn.init.normal_(tokenizer.codebook.weight)
    return tokenizer.eval()


def make_var(tokenizer: MultiScaleVQ | None = None, **changes: Any) -> VAR:
    """Seeded; no gate is zero, or most tests could not fail."""
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(1)
    config = {"depth": 2, "width": 32, "num_heads": 4, "num_classes": 5, **changes}
    model = VAR(VARConfig.model_validate(config), tokenizer)
    for name, parameter in model.named_parameters():
        if not name.startswith("tokenizer."):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_latents(**changes: Any) -> KLAutoencoder:
    """A KL autoencoder of 8x8 pictures with a 4x4 latent of 3 channels."""
    torch.manual_seed(0)
    shape = {**TOKENIZER["autoencoder"], "latent_channels": 3}
    config = {"image_size": 8, "autoencoder": shape, "latent_scale": 0.5, **changes}
    return KLAutoencoder(KLAutoencoderConfig.model_validate(config)).eval()


def make_patches(**changes: Any) -> PixelPatches:
    """8x8 pictures in 2x2 patches."""
    return PixelPatches(PixelPatchesConfig.model_validate({"image_size": 8, "patch_size": 2, "grey": True, **changes}))


def make_codes() -> MultiScaleVQ:
    """One scale: a plain VQ tokenizer."""
    return make_tokenizer(patch_nums=[4], num_residual_convs=1)


SINGLE_GRID: dict[str, Callable[[], Tokenizer]] = {
    "codes": make_codes,
    "latents": make_latents,
    "patches": make_patches,
}
SIZES: dict[str, dict[str, Any]] = {
    "causal": {"depth": 2},
    "mar": {"encoder_depth": 1, "decoder_depth": 1, "num_buffer": 2, "num_steps": 4},
}
HEADS: dict[str, dict[str, Any]] = {
    "categorical": {"kind": "categorical"},
    "gaussian_unit": {"kind": "gaussian", "variance": "unit"},
    "gaussian": {"kind": "gaussian", "depth": 1, "hidden": 16},
    "mixture": {"kind": "mixture", "components": 3},
    "logistic": {"kind": "mixture", "density": "discretized_logistic", "components": 3},
    "coupled": {"kind": "mixture", "density": "discretized_logistic", "components": 3, "coupled": True},
    "diffusion": {"kind": "diffusion", "depth": 1, "hidden": 16, "draws": 2, "diffusion_steps": 4},
    "flow": {"kind": "diffusion", "objective": "flow", "depth": 1, "hidden": 16, "diffusion_steps": 4},
}


def make_model(kind: str, tokenizer: Tokenizer, head: str, **changes: Any) -> GenerativeModel:
    """A causal generator or MAR with random weights; no gate is zero."""
    torch.manual_seed(1)
    config_class, model_class = MODELS[kind]
    config = config_class.model_validate(
        {"kind": kind, "width": 32, "num_heads": 4, "num_classes": 5, "head": HEADS[head], **SIZES[kind], **changes}
    )
    model = model_class(config, tokenizer)
    for name, parameter in model.named_parameters():
        if not name.startswith("tokenizer."):
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()
