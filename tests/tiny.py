"""Real classes at tiny sizes: a tokenizer of 8x8 pictures with three scales, and a VAR over it."""

from collections.abc import Mapping
from typing import Any

import torch

from genaim.models import VAR, VARConfig
from genaim.tokenizers import MultiScaleVQ, MultiScaleVQConfig

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
