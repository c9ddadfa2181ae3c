"""Models: an order, a head and a tokenizer. To add one: a file, and a line in `MODELS`."""

from genaim.models.base import GenerativeModel, GeneratorConfig, SamplingDefaults
from genaim.models.var import VAR, VARConfig

MODELS: dict[str, tuple[type[GeneratorConfig], type[GenerativeModel]]] = {"var": (VARConfig, VAR)}

ModelConfig = VARConfig

__all__ = ["MODELS", "VAR", "GenerativeModel", "GeneratorConfig", "SamplingDefaults", "VARConfig"]
