"""Heads: the distribution of a token. To add one: a file, and a line in `HEADS`."""

from genaim.heads.base import Head, SamplingOptions
from genaim.heads.categorical import CategoricalHead, CategoricalHeadConfig

HEADS = {"categorical": (CategoricalHeadConfig, CategoricalHead)}

__all__ = ["HEADS", "CategoricalHead", "CategoricalHeadConfig", "Head", "SamplingOptions"]
