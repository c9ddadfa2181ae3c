"""The mask rule gives the masks that the papers draw."""

import torch

from genaim.core.masks import NEVER, free_form, step_mask
from genaim.core.order import RasterOrder, ScaleOrder, prefix_steps


def drawn(text: str) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in row.split()] for row in text.strip().splitlines()])


def test_raster_is_causal() -> None:
    steps = RasterOrder(2, 2).step_ids()
    assert step_mask(steps, steps).equal(torch.ones(4, 4, dtype=torch.bool).tril())


def test_scales_are_block_causal() -> None:
    """VAR, figure 4: full attention inside a scale and to the scales before."""
    steps = ScaleOrder([1, 2]).step_ids()
    expected = drawn("""
        1 0 0 0 0
        1 1 1 1 1
        1 1 1 1 1
        1 1 1 1 1
        1 1 1 1 1
    """)
    assert step_mask(steps, steps).equal(expected)


def test_prefix_sees_itself_and_the_rest_is_causal() -> None:
    """AIM, figure 3: the prefix is bidirectional; rows of a batch have their own length."""
    steps = prefix_steps(torch.tensor([1, 3]), 4)
    mask = step_mask(steps, steps)
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].equal(torch.ones(4, 4, dtype=torch.bool).tril())
    assert mask[1, 0].equal(
        drawn("""
            1 1 1 0
            1 1 1 0
            1 1 1 0
            1 1 1 1
        """)
    )


def test_padding_keys_are_seen_by_nobody() -> None:
    keys = torch.tensor([0, NEVER, 1])
    assert step_mask(torch.tensor([0, 1, 5]), keys)[:, 1].sum() == 0


def test_two_streams() -> None:
    """A query stream that passes its rank minus one sees only earlier elements (SemAIM)."""
    ranks = torch.tensor([2, 0, 1])
    allowed = step_mask(ranks - 1, ranks)
    assert allowed.equal(ranks[None, :] < ranks[:, None])


def test_equal_values_of_a_field_rank_by_position() -> None:
    """An unstable sort ranks them as the device likes, and so the set of a seed would depend on it."""

    class Flat:
        def uniform(self, *shape: int) -> torch.Tensor:
            return torch.full((2, *shape), 0.5)

        def normal(self, *shape: int) -> torch.Tensor:
            return torch.zeros(2, *shape)

    chosen = free_form((8, 8), Flat())
    assert chosen.equal((torch.arange(64) < 32).expand(2, -1))
