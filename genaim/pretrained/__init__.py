"""Names to weights: bundled models, model folders, run folders, official checkpoints."""

from genaim.pretrained.store import bundled, find, load_encoder, load_generator, load_tokenizer, save_model

__all__ = ["bundled", "find", "load_encoder", "load_generator", "load_tokenizer", "save_model"]
