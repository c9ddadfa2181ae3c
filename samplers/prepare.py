"""Makes a model ready to sample fast, in place: the same products, from weights that lie as the hardware reads them."""

import torch

from genaim.core.hardware import compile_parts
from genaim.core.inference import ready_linears
from genaim.core.transformer import Block
from genaim.heads.diffusion import DenoiserBlock
from genaim.models import GenerativeModel
from genaim.tokenizers import Tokenizer
from genaim.tokenizers.autoencoder import Decoder, Level, PhaseUpsample, Upsample


def prepare(model: GenerativeModel, dtype: torch.dtype = torch.float32, *, compiled: bool = False) -> str | None:
    """Readies a model for `generate` and its kin with the same ``dtype``.

    1. Weights of linear layers are stored in the number format that they are computed in, so that autocast casts none
       of them anew, and on x86 CPUs in oneDNN's layout (`genaim.core.inference`). What a head computes in float32 stays
       that, but for the steps of a diffusion head that make errors smaller.
    2. Convolutions of the tokenizer get channels-last weights, and those behind an enlargement skip repeated pixels.
    3. With ``compiled``, blocks, denoiser and, on CUDA, the decoder are compiled when they first run: for many images
       of one batch size, since a new shape can take seconds to a minute.

    Results differ by rounding only. The model can then be neither trained, stored nor moved: load it anew for that. To
    prepare it again for the same format changes nothing, but may compile it.

    Args:
        model: On its device, with float32 weights; put into evaluation mode.
        dtype: Number format of matrix products, float32 or bfloat16, as `genaim.core.hardware.pick_dtype` chooses it.
        compiled: Whether to use `torch.compile`.

    Returns:
        Why nothing is compiled although it was asked for, or None.

    Raises:
        ValueError: If the model is prepared for another format, or has other weights.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"a model can be prepared for float32 and bfloat16, not for {dtype}.")
    if model.prepared is None:
        _ready(model.eval().requires_grad_(False), dtype)
    elif model.prepared != dtype:
        raise ValueError(f"the model is prepared for {model.prepared}, not for {dtype}; load it anew.")
    # Not the decoder on CPUs: compiled it took 1.3 s where oneDNN's convolutions take 1.1. No CUDA graphs: blocks write
    # to a cache and hand their output to one another, which recorded graphs do not allow.
    parts = (Block, DenoiserBlock, *([Decoder] if model.device.type == "cuda" else []))
    return compile_parts(model, parts, model.device) if compiled else None


def _ready(model: GenerativeModel, dtype: torch.dtype) -> None:
    stored = {p.dtype for name, p in model.named_parameters() if not name.startswith("tokenizer.")}
    if stored != {torch.float32}:
        raise ValueError(
            f"prepare takes a model of float32 weights, not of {', '.join(map(str, stored))}; load it anew."
        )
    model.head.prepare(dtype)
    # the tokenizer encodes images outside of autocast too
    ready_linears(model, lambda name: None if name.startswith(("head.", "tokenizer.")) else dtype)
    ready_convolutions(model.tokenizer)
    model.prepared = dtype


def ready_convolutions(tokenizer: Tokenizer) -> None:
    """Gives a tokenizer channels-last weights, and its enlargements `PhaseUpsample`, in place."""
    tokenizer.to(memory_format=torch.channels_last)
    for level in tokenizer.modules():
        if isinstance(level, Level) and isinstance(level.resample, Upsample):
            level.resample = PhaseUpsample(level.resample)
