"""Heads: the distribution of a token. To add one: a file, and a line in `HEADS` and in `AnyHeadConfig`."""

from typing import Annotated

from pydantic import Field

from genaim.heads.base import Head, HeadConfig, Measure, SamplingOptions, TokenSpec
from genaim.heads.categorical import CategoricalHead, CategoricalHeadConfig
from genaim.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from genaim.heads.gaussian import GaussianHead, GaussianHeadConfig
from genaim.heads.mixture import MixtureHead, MixtureHeadConfig

HEADS: dict[str, tuple[type[HeadConfig], type[Head]]] = {
    "categorical": (CategoricalHeadConfig, CategoricalHead),
    "gaussian": (GaussianHeadConfig, GaussianHead),
    "mixture": (MixtureHeadConfig, MixtureHead),
    "diffusion": (DiffusionHeadConfig, DiffusionHead),
}

AnyHeadConfig = Annotated[
    CategoricalHeadConfig | GaussianHeadConfig | MixtureHeadConfig | DiffusionHeadConfig, Field(discriminator="kind")
]
"""The config of any head, told apart by its kind."""

__all__ = [
    "HEADS",
    "AnyHeadConfig",
    "CategoricalHead",
    "CategoricalHeadConfig",
    "DiffusionHead",
    "DiffusionHeadConfig",
    "GaussianHead",
    "GaussianHeadConfig",
    "Head",
    "HeadConfig",
    "Measure",
    "MixtureHead",
    "MixtureHeadConfig",
    "SamplingOptions",
    "TokenSpec",
]
