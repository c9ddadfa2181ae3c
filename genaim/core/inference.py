"""Linear layers for inference: weights in the number format they are computed in, as the hardware wants to read them.

On x86 CPUs oneDNN multiplies by weights in a blocked layout of its own. From PyTorch's layout it reorders them at every
call, which for the few rows of a decoding step costs more than the product: on an AMD EPYC with AVX512 a step of 18
rows through a 1024 x 4096 layer took 2.00 ms in float32 and 0.69 ms with weights packed once, of 512 rows 23.1 and 19.2
ms. It is what `torch.compile` does with frozen weights, without a compiler.
"""

import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights can be packed: on x86 CPUs, by a PyTorch with oneDNN, in a format that the CPU multiplies."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if device.type != "cpu" or not is_x86 or not there:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class ReadyModule(nn.Module):
    """A part of a model that is made ready for sampling, and can be neither trained nor stored."""

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        raise ValueError(f"the model is made ready for sampling, {prefix[:-1]} with it; load it anew to store it.")

    def __deepcopy__(self, memo: object) -> "ReadyModule":
        raise ValueError("the model is made ready for sampling, which cannot be copied; load it anew.")


class InferenceLinear(ReadyModule):
    """A linear layer that computes in one number format, as under autocast; it can be neither trained nor stored."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Takes over a weight (out, in) and bias (out,), which are no longer needed."""
        super().__init__()
        weight = weight.detach().to(dtype)
        self.packed = can_pack(weight.device, dtype)
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the format of the weights."""
        x = x.to(self.weight.dtype)
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        product = _opaque_product if torch.compiler.is_compiling() else _packed_product
        return product(x.contiguous(), self.weight, self.bias)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """GELU of `forward`, where it can be while a product is written and before it is rounded."""
        if not self.packed or torch.compiler.is_compiling():
            return F.gelu(self(x), approximate=approximate)
        return _packed_product(x.to(self.weight.dtype).contiguous(), self.weight, self.bias, "gelu", approximate)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InferenceLinear":
        raise ValueError("the model is made ready for sampling where it is; load it anew to move or convert it.")


def _packed_product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none", how: str = "") -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], how)
    return out


# The compiler knows the operation only for weights that are constants of its graph, but blocks share their code.
_opaque_product = torch.library.custom_op("genaim::packed_product", _packed_product, mutates_args=())


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none", how: str = "") -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def ready_linears(module: nn.Module, dtype_of: Callable[[str], torch.dtype | None]) -> None:
    """Replaces linear layers by `InferenceLinear`.

    Products are those that autocast to a layer's number format computes, without casting weights anew for every batch.

    Args:
        module: Changed in place.
        dtype_of: The number format of a layer, by its name; None leaves it as it is.
    """
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear) or (dtype := dtype_of(name)) is None:
            continue
        parent, _, attribute = name.rpartition(".")
        owner: Any = module.get_submodule(parent)
        # VAR's attention has its bias in two parameters beside the layer
        bias = owner.qkv_bias() if attribute == "qkv" and hasattr(owner, "qkv_bias") else layer.bias
        owner.add_module(attribute, InferenceLinear(layer.weight, bias, dtype))
