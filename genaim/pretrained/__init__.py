"""Names to weights: bundled models, model folders, run folders, official checkpoints, the Hub.

What loads weights imports torch, and is imported when it is first asked for: a wrong name needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genaim.pretrained.names import bundled
from genaim.pretrained.official import OFFICIAL

if TYPE_CHECKING:
    from genaim.pretrained.hub import push_to_hub, save_pretrained
    from genaim.pretrained.save import save_model
    from genaim.pretrained.store import find, from_pretrained, load_encoder, load_generator, load_probe, load_tokenizer

__all__ = [
    "OFFICIAL",
    "bundled",
    "find",
    "from_pretrained",
    "load_encoder",
    "load_generator",
    "load_probe",
    "load_tokenizer",
    "push_to_hub",
    "save_model",
    "save_pretrained",
]

_MODULES = {"push_to_hub": "hub", "save_pretrained": "hub", "save_model": "save"}
"""Where the names are that are not in ``store``."""


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'genaim.pretrained' has no attribute '{name}'")
    return getattr(import_module(f"genaim.pretrained.{_MODULES.get(name, 'store')}"), name)
