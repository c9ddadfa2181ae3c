"""Official AIM checkpoints (github.com/apple/ml-aim): the encoders of AIM v1 and v2, and the probes of v1.

Of AIM v1 the backbones (``preprocessor.*``, ``trunk.*``) and probes (``head.*``) are published apart, and together on
the Hub; a loader takes its part of either. Both versions keep one layout and differ in norm and MLP, see
`genaim.models.aim`. SemAIM's encoder (github.com/skyoux/SemAIM) has the blocks of a plain vision transformer.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genaim.core.transformer import Transformer
from genaim.models import AIM, AttentiveProbe
from genaim.models.aim import PRESETS
from genaim.pretrained.keys import KeyTable, count, load_strict, rename

_BLOCK = r"trunk\.blocks\.(\d+)\."

AIM_KEYS: KeyTable = [
    (r"preprocessor\.pos_embed", r"positions"),  # of version 2, but for the native one
    (r"preprocessor\.patchifier\.(.+)", r"patch_embed.\1"),
    (_BLOCK + r"norm_([12])\.(.+)", r"transformer.blocks.\1.norm\2.\3"),
    (_BLOCK + r"attn\.attn_mask", None),  # the prefix mask of pre-training
    (_BLOCK + r"((?:attn|mlp)\..+)", r"transformer.blocks.\1.\2"),
    (r"trunk\.post_trunk_norm\.(.+)", r"transformer.norm.\1"),
    (r"head\.(?:cls_token|(?:k|v|linear|bn)\..+)", None),  # the probe
]

PROBE_KEYS: KeyTable = [
    (r"head\.cls_token", r"query"),
    (r"head\.bn\.(.+)", r"norm.\1"),
    (r"head\.((?:k|v|linear)\..+)", r"\1"),
    (r"(?:preprocessor|trunk)\..+", None),  # the encoder
]

SEMAIM_KEYS: KeyTable = [
    (r"(blocks\.\d+\.(?:norm1|attn|norm2|mlp)\..+)", r"\1"),
    (r"(norm\..+)", r"\1"),
    (r"cls_token|pos_embed|patch_embed\.proj\..+", None),  # before the blocks
    (r"(?:query_blocks|prediction_head|gaussian_blur)\..+", None),  # of pre-training
]


def aim_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of an AIM of either version from the shapes of its official weights; the pixel head is not published.

    Raises:
        ValueError: If it is of no published size: the number of attention heads leaves no trace in the shapes.
    """
    state = _image_encoder(state)
    patch = state["preprocessor.patchifier.proj.weight"]
    size = {
        "version": 1 if "preprocessor.patchifier.norm.bias" in state else 2,  # RMSNorm has no bias
        "depth": count(state, r"trunk\.blocks\.(\d+)\."),
        "width": patch.shape[0],
        "patch_size": patch.shape[-1],
    }
    found: dict[str, Any] = {"kind": "aim", "head_depth": None}
    if "preprocessor.pos_embed" in state:
        found["image_size"] = math.isqrt(state["preprocessor.pos_embed"].shape[-2]) * size["patch_size"]
    elif size["version"] == 2:
        found["positions"] = "sincos"  # the native one takes images of any size
    for name, preset in PRESETS.items():
        if size == {key: ({"version": 1} | preset).get(key) for key in size}:
            return found | {"preset": name}
    raise ValueError(
        f"no published AIM has this size, whose number of attention heads cannot be seen: {size}; these are known: "
        f"{', '.join(PRESETS)}."
    )


def _image_encoder(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The image half of AIMv2-LiT, which has a text encoder beside it; any other state dict as it is."""
    part = "image_encoder."
    return {key.removeprefix(part): state[key] for key in state if key.startswith(part)} or state


def probe_config(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Config of the probe in an official state dict, but for its attention heads; None if there is no probe."""
    if "head.linear.weight" not in state:
        return None
    num_classes, width = state["head.linear.weight"].shape
    return {"width": width, "num_classes": num_classes, "bias": "head.linear.bias" in state}


def load_official_aim(model: AIM, state: Mapping[str, Tensor]) -> None:
    """Fills an AIM of either version from an official state dict; a pixel head, which is not published, stays as it is.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    family = f"AIM v{model.config.version}"
    renamed = rename(_image_encoder(state), AIM_KEYS, family)
    renamed |= {k: v for k, v in model.state_dict().items() if k.startswith("pixel_head.")}
    load_strict(model, renamed, family)


def load_official_probe(probe: AttentiveProbe, state: Mapping[str, Tensor]) -> None:
    """Fills a probe from an official state dict of AIM v1.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    load_strict(probe, rename(state, PROBE_KEYS, "AIM v1 probe"), "AIM v1 probe")


def load_official_semaim(transformer: Transformer, state: Mapping[str, Tensor]) -> None:
    """Fills a transformer with the encoder blocks and the final norm of an official SemAIM state dict.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    load_strict(transformer, rename(state, SEMAIM_KEYS, "SemAIM"), "SemAIM")
