"""The models that the web demo serves: their configs at once, their weights when they are first used."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from apps.progress import make_progress
from genaim.config import nearest, validate
from genaim.core.hardware import pick_device, pick_dtype
from genaim.models import MODELS, GenerativeModel, GeneratorConfig, VARConfig
from genaim.pretrained import find, load_generator
from genaim.pretrained.names import bundled_generators, read_config
from samplers.prepare import prepare

DEFAULT_MODEL = "emoji-var"


@dataclass
class Models:
    """The models that are served; each is loaded when it is first used, and shared."""

    names: Sequence[str]
    """Bundled or official models, model folders or run folders."""
    device: torch.device = field(default_factory=lambda: pick_device("auto"))
    """Where they compute."""
    configs: dict[str, GeneratorConfig] = field(init=False)
    """Their configs, read without their weights."""

    def __post_init__(self) -> None:
        """Reads the configs.

        Raises:
            ValueError: If a model cannot be found, or is no generator.
        """
        self.configs = {name: read_generator_config(name) for name in self.names}
        self.dtype = pick_dtype("auto", self.device)
        self._loaded: dict[str, GenerativeModel] = {}
        self._lock = threading.Lock()

    @property
    def painters(self) -> list[str]:
        """Names of the models that draw and paint by themselves."""
        return [name for name, config in self.configs.items() if config.low_res is None]

    @property
    def enlargers(self) -> list[str]:
        """Names of the models that enlarge pictures, those made for it first."""
        made = [name for name, config in self.configs.items() if config.low_res is not None]
        return made + [name for name, config in self.configs.items() if isinstance(config, VARConfig)]

    def load(self, name: str) -> GenerativeModel:
        """A model by its name.

        Raises:
            ValueError: If it is not served.
        """
        if name not in self.configs:
            raise ValueError(f"model '{name}' is not served here; {nearest(name, self.configs)}.")
        with self._lock:
            if name not in self._loaded:
                model = load_generator(name, device=self.device)
                prepare(model, self.dtype)
                self._loaded[name] = model
        return self._loaded[name]


def offered_generators() -> list[str]:
    """Names of the generators that come with the package, `DEFAULT_MODEL` first."""
    return sorted(bundled_generators(), key=lambda name: name != DEFAULT_MODEL)


def read_generator_config(name: str) -> GeneratorConfig:
    """The config of a generator by a name or folder that `find` takes.

    Raises:
        ValueError: If it cannot be found or read, or is no generator.
    """
    folder = find(name, "generator", progress=make_progress(sys.stderr))
    config = read_config(folder)
    kind: Any = config["model"].get("kind")
    if kind not in MODELS:
        raise ValueError(f"{folder}: unknown model kind {kind!r}; {nearest(str(kind), MODELS)}.")
    generator: GeneratorConfig = validate(MODELS[kind][0], config["model"], str(folder))
    return generator
