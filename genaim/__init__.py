"""genaim: autoregressive image generation, every published idea as a choice of order x head x tokenizer."""

__version__ = "0.1.0"
