"""Tokenizers: what a token is. To add one: a file, a line in `TOKENIZERS`, and one in a union of configs below."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from genaim.config import Config
from genaim.tokenizers.base import Tokenizer, TrainableTokenizer, fingerprint, same_weights
from genaim.tokenizers.diffusers_autoencoder import DiffusersAutoencoder, DiffusersAutoencoderConfig
from genaim.tokenizers.latents import KLAutoencoder, KLAutoencoderConfig, LatentTokenizer
from genaim.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from genaim.tokenizers.patches import PixelPatches, PixelPatchesConfig
from genaim.tokenizers.taef2 import TAEF2, TAEF2Config

TOKENIZERS: dict[str, tuple[type[Config], type[Tokenizer]]] = {
    "multiscale_vq": (MultiScaleVQConfig, MultiScaleVQ),
    "kl": (KLAutoencoderConfig, KLAutoencoder),
    "patches": (PixelPatchesConfig, PixelPatches),
    "taef2": (TAEF2Config, TAEF2),
    "diffusers": (DiffusersAutoencoderConfig, DiffusersAutoencoder),
}

TrainableConfig = Annotated[MultiScaleVQConfig | KLAutoencoderConfig, Field(discriminator="kind")]
"""Configs of the tokenizers that our trainer trains."""

ReadyConfig = PixelPatchesConfig | TAEF2Config | DiffusersAutoencoderConfig
"""Configs of tokenizers that a recipe can use without training them: of pixels, and of published weights."""


def _tag(value: Any) -> str | None:
    """Which member of `TokenizerChoice` a raw value is."""
    if isinstance(value, str):
        return "(a name)"
    kind: str | None = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind


TokenizerChoice = Annotated[
    Annotated[str, Tag("(a name)")]
    | Annotated[PixelPatchesConfig, Tag("patches")]
    | Annotated[TAEF2Config, Tag("taef2")]
    | Annotated[DiffusersAutoencoderConfig, Tag("diffusers")],
    Discriminator(_tag),
]
"""A tokenizer by name, or a `ReadyConfig`."""

__all__ = [
    "TAEF2",
    "TOKENIZERS",
    "DiffusersAutoencoder",
    "DiffusersAutoencoderConfig",
    "KLAutoencoder",
    "KLAutoencoderConfig",
    "LatentTokenizer",
    "MultiScaleVQ",
    "MultiScaleVQConfig",
    "PixelPatches",
    "PixelPatchesConfig",
    "ReadyConfig",
    "TAEF2Config",
    "Tokenizer",
    "TokenizerChoice",
    "TrainableConfig",
    "TrainableTokenizer",
    "fingerprint",
    "same_weights",
]
