"""Makes a model ready to sample fast, in place: the same products, from weights that lie as the hardware reads them."""

import torch

from genaim.core.hardware import compile_parts
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
        compiled: Whether to use `torch.compile`, for a denoiser on CUDA with graphs.

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
    return _compile(model) if compiled else None


def _compile(model: GenerativeModel) -> str | None:
    """Compiles the parts that do the work, or says why it cannot."""
    if model.device.type != "cuda":
        # not the decoder: compiled it took 1.3 s where oneDNN's convolutions take 1.1
        return compile_parts(model, (Block, DenoiserBlock), model.device)
    # A denoiser is many small kernels of one shape, which a CUDA graph launches at once. Blocks write to a cache, and
    # pictures outlive the next batch: graphs are not for these.
    reason = compile_parts(model, (DenoiserBlock,), model.device, mode="reduce-overhead")
    return reason or compile_parts(model, (Block, Decoder), model.device)
