"""Tokenizers: what a token is. To add one: a file, and a line in `TOKENIZERS`."""

from genaim.tokenizers.base import Tokenizer, fingerprint
from genaim.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig

TOKENIZERS = {"multiscale_vq": (MultiScaleVQConfig, MultiScaleVQ)}

__all__ = ["TOKENIZERS", "MultiScaleVQ", "MultiScaleVQConfig", "Tokenizer", "fingerprint"]
