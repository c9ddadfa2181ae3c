"""Every order visits every unknown position exactly once."""

import pytest
import torch

from genaim.core.order import Order, RasterOrder, ScaleOrder
from genaim.core.positions import sincos_2d

ORDERS = {"raster": RasterOrder(14), "scales": ScaleOrder([1, 2, 3])}


@pytest.mark.parametrize("name", ORDERS)
def test_each_position_once_and_in_the_order_of_its_step(name: str) -> None:
    order: Order = ORDERS[name]
    ids = order.step_ids()
    steps = list(order.steps(torch.zeros(2, 14, dtype=torch.bool)))
    assert [s.number for s in steps] == list(range(steps[0].total)) == ids.unique().tolist()
    assert torch.cat([s.positions for s in steps], dim=1).sort(dim=1).values.equal(torch.arange(14).expand(2, -1))
    for step in steps:
        assert (ids[step.positions] == step.number).all()
    shares = torch.stack([s.share for s in steps])
    assert (shares.diff(dim=0) > 0).all() and (shares[-1] == 1).all()


def test_raster_visits_unknown_positions_only() -> None:
    known = torch.zeros(2, 6, dtype=torch.bool)
    known[0, [0, 2, 5]] = True
    known[1, 1] = True
    steps = list(RasterOrder(6).steps(known))
    visited = torch.cat([s.positions for s in steps], dim=1)
    assert visited.tolist() == [[1, 3, 4, -1, -1], [0, 2, 3, 4, 5]]
    assert steps[0].share.tolist() == pytest.approx([4 / 6, 2 / 6])
    assert steps[-1].share.tolist() == [1.0, 1.0]


def test_fixed_orders_refuse_another_number_of_steps() -> None:
    with pytest.raises(ValueError, match="ScaleOrder always takes 3"):
        list(ORDERS["scales"].steps(torch.zeros(1, 14, dtype=torch.bool), num_steps=7))


def test_sincos_starts_with_the_column() -> None:
    table = sincos_2d(3, 5, 16).view(3, 5, 16)
    column, row = table.chunk(2, dim=-1)
    assert (column == column[:1]).all() and (row == row[:, :1]).all()
    x, y = torch.tensor(3.0), torch.tensor(2.0)  # the highest frequency of each quarter is 1
    torch.testing.assert_close(table[2, 3, ::4], torch.stack([x.sin(), x.cos(), y.sin(), y.cos()]))
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(2, 2, 6)
