"""Every order visits every unknown position exactly once."""

import pytest
import torch

from genaim.core.noise import NoiseSource
from genaim.core.order import ORDERS as REGISTRY
from genaim.core.order import (
    CheckerboardOrder,
    FixedRandomOrder,
    Order,
    RandomOrder,
    RandomSequenceOrder,
    RasterOrder,
    ScaleOrder,
    SequenceOrder,
    SpiralOrder,
    known_first,
)
from genaim.core.positions import sincos_2d

ORDERS: dict[str, Order] = {
    "scales": ScaleOrder([1, 2, 3]),
    "raster": RasterOrder(2, 7),
    "spiral": SpiralOrder(2, 7),
    "checkerboard": CheckerboardOrder(2, 7),
    "fixed_random": FixedRandomOrder(2, 7),
    "random_sequence": RandomSequenceOrder(2, 7),
    "random": RandomOrder(2, 7, num_steps=5),
}


def noise(batch_size: int = 2, seed: int = 0) -> NoiseSource:
    return NoiseSource(seed, torch.arange(batch_size))


def test_all_orders_are_tested() -> None:
    assert ORDERS.keys() == REGISTRY.keys()


@pytest.mark.parametrize("name", ORDERS)
def test_each_position_once(name: str) -> None:
    steps = list(ORDERS[name].steps(torch.zeros(2, 14, dtype=torch.bool), noise=noise()))
    assert [s.number for s in steps] == list(range(steps[0].total))
    assert torch.cat([s.positions for s in steps], dim=1).sort(dim=1).values.equal(torch.arange(14).expand(2, -1))
    shares = torch.stack([s.share for s in steps])
    assert (shares.diff(dim=0) >= 0).all()
    assert torch.allclose(shares[-1], torch.tensor(13 / 14 if name == "random" else 1.0))


@pytest.mark.parametrize("name", [n for n in ORDERS if n not in ("random", "random_sequence")])
def test_steps_follow_the_step_ids(name: str) -> None:
    ids = ORDERS[name].step_ids()
    for step in ORDERS[name].steps(torch.zeros(2, 14, dtype=torch.bool), noise=noise()):
        assert (ids[step.positions] == step.number).all()


@pytest.mark.parametrize("name", [n for n in ORDERS if n != "scales"])
def test_only_unknown_positions_are_visited(name: str) -> None:
    known = torch.zeros(3, 14, dtype=torch.bool)
    known[0, [0, 2, 5]] = True
    known[1, 1:] = True
    known[2] = True
    steps = list(ORDERS[name].steps(known, noise=noise(3)))
    visited = torch.cat([s.positions for s in steps], dim=1)
    for row, mask in zip(visited, known, strict=True):
        assert row[row >= 0].sort().values.tolist() == (~mask).nonzero().flatten().tolist()


def test_raster_visits_unknown_positions_in_turn() -> None:
    known = torch.zeros(2, 6, dtype=torch.bool)
    known[0, [0, 2, 5]] = True
    known[1, 1] = True
    steps = list(RasterOrder(2, 3).steps(known))
    visited = torch.cat([s.positions for s in steps], dim=1)
    assert visited.tolist() == [[1, 3, 4, -1, -1], [0, 2, 3, 4, 5]]
    assert steps[0].share.tolist() == pytest.approx([4 / 6, 2 / 6])
    assert steps[-1].share.tolist() == [1.0, 1.0]


def test_paths_are_what_the_names_say() -> None:
    assert SpiralOrder(3, 3).path().tolist() == [4, 5, 8, 7, 6, 3, 0, 1, 2]
    assert CheckerboardOrder(2, 3).path().tolist() == [0, 2, 4, 1, 3, 5]
    assert FixedRandomOrder(4, 4).path().equal(FixedRandomOrder(4, 4).path())
    for order in (SpiralOrder(5, 3), FixedRandomOrder(5, 3)):
        assert order.path().sort().values.tolist() == list(range(15))


@pytest.mark.parametrize("order", [RandomOrder(4, 4), RandomSequenceOrder(4, 4)], ids=["random", "random_sequence"])
def test_a_random_order_belongs_to_the_image(order: Order) -> None:
    known = torch.zeros(1, 16, dtype=torch.bool)
    both = [s.positions for s in order.steps(known.expand(2, -1), noise=noise(2))]
    second = [s.positions for s in order.steps(known, noise=NoiseSource(0, torch.tensor([1])))]
    assert all(two[1:].equal(one) for two, one in zip(both, second, strict=True))
    assert any(not two[0].equal(two[1]) for two in both)


def test_random_sets_follow_the_cosine() -> None:
    counts = [
        s.positions.shape[1] for s in RandomOrder(16, 16).steps(torch.zeros(1, 256, dtype=torch.bool), 4, noise(1))
    ]
    assert counts == [256 - 236, 236 - 181, 181 - 97, 97]  # floor(256 cos(pi/8 k)) stay hidden
    one = [s.positions.shape[1] for s in RandomOrder(2, 2).steps(torch.zeros(1, 4, dtype=torch.bool), 64, noise(1))]
    assert one == [1, 1, 1, 1], "never an empty step"


def test_a_row_with_few_hidden_tokens_keeps_its_steps_beside_others() -> None:
    """Empty steps were left out when no row needed them, so a row's draws depended on its batch mates."""
    known = torch.ones(2, 16, dtype=torch.bool)
    known[0, :3] = False
    known[1] = False
    both = [s.positions[0] for s in RandomOrder(4, 4).steps(known, 8, noise(2))]
    alone = [s.positions[0] for s in RandomOrder(4, 4).steps(known[:1], 8, noise(1))]
    assert len(both) == 8 and len(alone) == 3
    assert [p[p >= 0].tolist() for p in both[:3]] == [p.tolist() for p in alone]
    assert all((p < 0).all() for p in both[3:])


def test_known_first_keeps_the_order_of_both_parts() -> None:
    path = torch.tensor([[3, 1, 0, 2]])
    known = torch.tensor([[True, False, True, False]])  # positions 0 and 2
    assert known_first(path, known).tolist() == [[0, 2, 3, 1]]


@pytest.mark.parametrize("name", [n for n in ORDERS if isinstance(ORDERS[n], SequenceOrder) or n == "scales"])
def test_fixed_orders_refuse_another_number_of_steps(name: str) -> None:
    with pytest.raises(ValueError, match=f"9 steps are asked for, but the order '{name}' always takes"):
        list(ORDERS[name].steps(torch.zeros(1, 14, dtype=torch.bool), 9, noise(1)))


def test_sincos_starts_with_the_column() -> None:
    table = sincos_2d(3, 5, 16).view(3, 5, 16)
    column, row = table.chunk(2, dim=-1)
    assert (column == column[:1]).all() and (row == row[:, :1]).all()
    x, y = torch.tensor(3.0), torch.tensor(2.0)  # the highest frequency of each quarter is 1
    torch.testing.assert_close(table[2, 3, ::4], torch.stack([x.sin(), x.cos(), y.sin(), y.cos()]))
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(2, 2, 6)


def test_random_orders_ask_for_noise() -> None:
    for order in (RandomOrder(4, 4), REGISTRY["random_sequence"](4, 4)):
        with pytest.raises(ValueError, match="random order draws from a noise source; pass noise"):
            list(order.steps(torch.zeros(1, 16, dtype=torch.bool)))
