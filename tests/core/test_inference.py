"""Linear layers for inference compute what autocast computes, and refuse what they cannot do."""

import pytest
import torch
from torch import nn

from genaim.core.inference import InferenceLinear, ready_linears


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 130])
@torch.no_grad()
def test_products_are_those_of_autocast(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 20), torch.randn(2, rows, 48)
    exact = layer.double()(x.double())
    fast = InferenceLinear(layer.weight, layer.bias, dtype)
    found = fast(x)
    assert found.dtype == dtype
    # a product of n terms is within n roundings of its format; bfloat16 is rounded at both ends
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_no_bias_and_rows_that_are_not_contiguous() -> None:
    layer, x = nn.Linear(8, 4, bias=False), torch.randn(8, 6)
    torch.testing.assert_close(InferenceLinear(layer.weight, None, torch.float32)(x.mT), layer(x.mT))


def test_what_is_ready_for_sampling_cannot_be_stored() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    ready_linears(module, lambda name: torch.float32 if name == "2" else None)
    assert isinstance(module[0], nn.Linear) and isinstance(module[2], InferenceLinear)
    with pytest.raises(ValueError, match="the model is made ready for sampling, 2 with it; load it anew to store it"):
        module.state_dict()
