"""Tokenizers: what a token is. To add one: a file, and a line in `TOKENIZERS`."""

from typing import Annotated

from pydantic import Field

from genaim.config import Config
from genaim.tokenizers.base import Tokenizer, TrainableTokenizer, fingerprint
from genaim.tokenizers.latents import KLAutoencoder, KLAutoencoderConfig, LatentTokenizer
from genaim.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from genaim.tokenizers.patches import PixelPatches, PixelPatchesConfig

TOKENIZERS: dict[str, tuple[type[Config], type[Tokenizer]]] = {
    "multiscale_vq": (MultiScaleVQConfig, MultiScaleVQ),
    "kl": (KLAutoencoderConfig, KLAutoencoder),
    "patches": (PixelPatchesConfig, PixelPatches),
}

TrainableConfig = Annotated[MultiScaleVQConfig | KLAutoencoderConfig, Field(discriminator="kind")]
"""Configs of the tokenizers that our trainer trains."""

__all__ = [
    "TOKENIZERS",
    "KLAutoencoder",
    "KLAutoencoderConfig",
    "LatentTokenizer",
    "MultiScaleVQ",
    "MultiScaleVQConfig",
    "PixelPatches",
    "PixelPatchesConfig",
    "Tokenizer",
    "TrainableConfig",
    "TrainableTokenizer",
    "fingerprint",
]
