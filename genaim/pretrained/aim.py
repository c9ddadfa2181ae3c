"""Official AIM checkpoints (github.com/apple/ml-aim): the encoders of AIM v1 and v2, and the probes of v1.

Of AIM v1 the backbones (``preprocessor.*``, ``trunk.*``) and probes (``head.*``) are published apart, and together on
the Hub; a loader takes its part of either. Both versions keep one layout and differ in norm and MLP, see
`genaim.models.aim`. SemAIM's encoder (github.com/skyoux/SemAIM) has the blocks of a plain vision transformer.
"""

from collections.abc import Mapping

from torch import Tensor

from genaim.core.transformer import Transformer
from genaim.models import AIM, AttentiveProbe
from genaim.pretrained.keys import KeyTable, load_strict, rename

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


def load_official_aim(model: AIM, state: Mapping[str, Tensor]) -> None:
    """Fills an AIM of either version from an official state dict; a pixel head, which is not published, stays as it is.

    Raises:
        ValueError: If a key or shape does not fit.
    """
    family = f"AIM v{model.config.version}"
    renamed = rename(state, AIM_KEYS, family)
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
