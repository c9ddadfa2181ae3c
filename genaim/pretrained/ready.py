"""Tokenizers that a recipe describes instead of naming one: pixels, and published weights of others."""

from genaim.pretrained.diffusers_autoencoder import load_diffusers
from genaim.pretrained.taef2 import load_taef2
from genaim.tokenizers import PixelPatches, PixelPatchesConfig, ReadyConfig, TAEF2Config, Tokenizer


def ready_tokenizer(config: ReadyConfig) -> Tokenizer:
    """The tokenizer of a config, with its weights if it has any.

    Raises:
        ValueError: If the config names no weights, or they cannot be read.
    """
    if isinstance(config, PixelPatchesConfig):
        return PixelPatches(config).eval()
    if config.source is None:
        raise ValueError(f"tokenizer of kind '{config.kind}' has no weights; give its source.")
    return load_taef2(config.source, config) if isinstance(config, TAEF2Config) else load_diffusers(config)
