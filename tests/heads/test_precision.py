"""The last layer of a head is computed in float32, whatever autocast and the weights say."""

import pytest
import torch

from genaim.core.layers import in_float32
from genaim.heads import HEADS, Head, TokenSpec

WIDTH = 8
TOKENS = {"categorical": TokenSpec(16, None, None), "continuous": TokenSpec(None, 3, None)}


def make(kind: str) -> Head:
    torch.manual_seed(0)
    config, head = HEADS[kind]
    spec = TOKENS["categorical" if kind == "categorical" else "continuous"]
    return head(config().fitted(WIDTH, spec)).eval()


@pytest.mark.parametrize("kind", ["categorical", "gaussian", "mixture"])
def test_autocast_does_not_round_the_likelihood(kind: str) -> None:
    """Its last layer alone moved the bits per dimension of `mnist-aim` in the third decimal."""
    head, x = make(kind), 4 * torch.randn(5, 3, WIDTH)
    targets = torch.randint(16, (5, 3)) if kind == "categorical" else torch.randn(5, 3, 3)
    exact = head.log_prob(x, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.log_prob(x, targets).equal(exact)
    rounded = head.bfloat16().log_prob(x, targets)
    assert rounded.dtype == torch.float32
    assert head.float().log_prob(x, targets).equal(rounded)  # the weights are rounded, the product is not


def test_gradients_reach_half_precision_weights() -> None:
    layer, x = torch.nn.Linear(4, 2).bfloat16(), torch.randn(3, 4)
    in_float32(layer, x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(2, -1).bfloat16())
