"""Makes a model ready to sample fast, in place: the same products, from weights that lie as the hardware reads them."""

import torch
from torch import nn

from genaim.core.inference import ready_linears
from genaim.core.transformer import Block
from genaim.heads.diffusion import DenoiserBlock
from genaim.models import GenerativeModel
from genaim.tokenizers.autoencoder import Decoder, Level, PhaseUpsample, Upsample


def prepare(model: GenerativeModel, dtype: torch.dtype = torch.float32, *, compiled: bool = False) -> str | None:
    """Readies a model for `generate` and its kin with the same ``dtype``.

    1. Weights of linear layers are stored in the number format that they are computed in, so that autocast casts none
       of them anew, and on x86 CPUs in oneDNN's layout (`genaim.core.inference`). What a head computes in float32 stays
       that, but for the steps of a diffusion head that make errors smaller.
    2. Convolutions of the tokenizer get channels-last weights, and those behind an enlargement skip repeated pixels.
    3. With ``compiled``, blocks, denoiser and decoder are compiled when they first run: for many images of one batch
       size, since every new shape takes seconds to a minute.

    Results differ by rounding only. The model can then be neither trained nor stored: load it anew for that.

    Args:
        model: On its device; put into evaluation mode.
        dtype: Number format of matrix products, as `genaim.core.hardware.pick_dtype` chooses it.
        compiled: Whether to use `torch.compile`, on CUDA with graphs.

    Returns:
        Why nothing is compiled although it was asked for, or None.
    """
    model.eval().requires_grad_(False)
    model.head.prepare(dtype)
    # the tokenizer encodes images outside of autocast too
    ready_linears(model, lambda name: None if name.startswith(("head.", "tokenizer.")) else dtype)
    for level in model.modules():
        if isinstance(level, Level) and isinstance(level.resample, Upsample):
            level.resample = PhaseUpsample(level.resample)
    model.tokenizer.to(memory_format=torch.channels_last)
    return compile_parts(model) if compiled else None


def compile_parts(model: GenerativeModel) -> str | None:
    """Compiles what does the work of sampling, each part by itself so that equal blocks share their code.

    Not the decoder on CPUs, where the compiled one was measured slower than oneDNN's convolutions (1.3 and 1.1 s).

    Returns:
        Why nothing can be compiled here, or None.
    """
    on_cuda = model.device.type == "cuda"
    parts: tuple[type[nn.Module], ...] = (Block, DenoiserBlock, *([Decoder] if on_cuda else []))
    reason = cannot_compile(model.device)
    if reason is None:
        for module in model.modules():
            if isinstance(module, parts):
                module.compile(mode="reduce-overhead" if on_cuda else "default")
    return reason


def cannot_compile(device: torch.device) -> str | None:
    """Why `torch.compile` does not work here, such as a missing C++ compiler; None where it does."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever stage fails, with errors of its own
        return " ".join(str(error).split())[:200]
    return None
