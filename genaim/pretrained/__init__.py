"""Names to weights: bundled models, model folders, run folders, official checkpoints, the Hub."""

from genaim.pretrained.hub import push_to_hub, save_pretrained
from genaim.pretrained.official import OFFICIAL
from genaim.pretrained.save import save_model
from genaim.pretrained.store import (
    bundled,
    find,
    from_pretrained,
    load_encoder,
    load_generator,
    load_probe,
    load_tokenizer,
)

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
