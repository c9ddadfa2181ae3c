"""Models: an order, a head and a tokenizer. To add one: a file, and a line in `MODELS` and in `ModelConfig`.

Encoders, which give features and generate nothing, are in `ENCODERS`.
"""

from typing import Annotated

from pydantic import Field

from genaim.models.aim import AIM, AIMConfig
from genaim.models.base import GenerativeModel, GeneratorConfig, Given, SamplingDefaults
from genaim.models.causal import CausalConfig, CausalGenerator
from genaim.models.encoder import Encoder
from genaim.models.mar import MAR, MARConfig
from genaim.models.probe import AttentiveProbe, AttentiveProbeConfig
from genaim.models.var import VAR, VARConfig

MODELS: dict[str, tuple[type[GeneratorConfig], type[GenerativeModel]]] = {
    "var": (VARConfig, VAR),
    "mar": (MARConfig, MAR),
    "causal": (CausalConfig, CausalGenerator),
}

ModelConfig = Annotated[VARConfig | MARConfig | CausalConfig, Field(discriminator="kind")]
"""The config of any generator, told apart by its kind."""

ENCODERS: dict[str, tuple[type[AIMConfig], type[Encoder]]] = {"aim": (AIMConfig, AIM)}

EncoderConfig = AIMConfig
"""The config of any encoder."""

__all__ = [
    "AIM",
    "ENCODERS",
    "MAR",
    "MODELS",
    "VAR",
    "AIMConfig",
    "AttentiveProbe",
    "AttentiveProbeConfig",
    "CausalConfig",
    "CausalGenerator",
    "Encoder",
    "EncoderConfig",
    "GenerativeModel",
    "GeneratorConfig",
    "Given",
    "MARConfig",
    "ModelConfig",
    "SamplingDefaults",
    "VARConfig",
]
