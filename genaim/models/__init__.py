"""Models: an order, a head and a tokenizer. To add one: a file, and a line in `MODELS` and in `ModelConfig`."""

from typing import Annotated

from pydantic import Field

from genaim.models.base import GenerativeModel, GeneratorConfig, SamplingDefaults
from genaim.models.causal import CausalConfig, CausalGenerator
from genaim.models.mar import MAR, MARConfig
from genaim.models.var import VAR, VARConfig

MODELS: dict[str, tuple[type[GeneratorConfig], type[GenerativeModel]]] = {
    "var": (VARConfig, VAR),
    "mar": (MARConfig, MAR),
    "causal": (CausalConfig, CausalGenerator),
}

ModelConfig = Annotated[VARConfig | MARConfig | CausalConfig, Field(discriminator="kind")]
"""The config of any generator, told apart by its kind."""

__all__ = [
    "MAR",
    "MODELS",
    "VAR",
    "CausalConfig",
    "CausalGenerator",
    "GenerativeModel",
    "GeneratorConfig",
    "MARConfig",
    "ModelConfig",
    "SamplingDefaults",
    "VARConfig",
]
