"""Power laws are found again where they are known, and nothing is claimed that the points do not say."""

import numpy as np
import pytest

from genaim.evaluation.scaling import fit_power_law, frontier, student_quantile
from genaim.evaluation.study import StudyPoint, study_series

X = np.geomspace(1e4, 1e6, 6)


@pytest.mark.parametrize(
    ("offset", "scale", "exponent"), [(2.5, 30.0, 0.3), (0.0, 8.0, 0.07), (1.0, 5.0, 0.05), (2.9, 4e4, 1.2)]
)
def test_an_exact_law_is_found_again(offset: float, scale: float, exponent: float) -> None:
    law = fit_power_law(list(X), list(offset + scale * X**-exponent))
    assert law.exponent == pytest.approx(exponent, rel=1e-8)
    assert law.scale == pytest.approx(scale, rel=1e-6)
    assert law.offset == pytest.approx(offset, abs=1e-8)
    assert law.offset_is_free == (offset > 0)
    assert law.r2 == pytest.approx(1)
    low, high = law.interval
    assert low is not None and high is not None and low <= exponent <= high and high - low < 1e-6
    np.testing.assert_allclose(law(X), offset + scale * X**-exponent)


def test_the_interval_holds_the_exponent_of_noisy_laws_nineteen_times_of_twenty() -> None:
    """300 draws: the standard error of the share is 0.013."""
    x, rng, held = np.geomspace(1e4, 1e6, 8), np.random.default_rng(0), []
    for _ in range(300):
        law = fit_power_law(list(x), list(2.5 + 30 * x**-0.3 + 0.01 * rng.standard_normal(8)))
        low, high = law.interval
        held.append((low is None or low <= 0.3) and (high is None or high >= 0.3))
        assert law.exponent == pytest.approx(0.3, abs=0.06)
        assert law.r2 is not None and 0.998 < law.r2 < 1
    assert np.mean(held) == pytest.approx(0.95, abs=0.04)


def test_the_interval_of_a_straight_line_is_that_of_linear_regression() -> None:
    """For small noise the law without offset is a line in logarithms, whose slope has a closed interval."""
    x, noise = X[:3], 1e-5 * np.array([1.0, -2.0, 1.5])
    law = fit_power_law(list(x), list(8 * x**-0.07 * (1 + noise)))
    u = np.log(x) - np.log(x).mean()
    y = np.log(8 * x**-0.07 * (1 + noise))
    slope = (u * y).sum() / (u * u).sum()
    error = np.sqrt(((y - y.mean() - slope * u) ** 2).sum() / (u * u).sum())
    assert law.exponent == pytest.approx(-slope, abs=2e-6)
    low, high = law.interval
    assert low is not None and high is not None
    assert high - low == pytest.approx(2 * 12.706204736432095 * error, rel=0.1)


def test_too_few_points_hold_the_offset_at_zero() -> None:
    law = fit_power_law(list(X[:3]), list(2 + 30 * X[:3] ** -0.3))
    assert (law.offset, law.offset_is_free) == (0, False)
    assert law.r2 is not None and law.r2 < 1


def test_two_points_have_an_exponent_without_confidence() -> None:
    law = fit_power_law([1e3, 1e5], [5.0, 4.0])
    assert law.exponent == pytest.approx(np.log(5 / 4) / np.log(100))
    assert (law.interval, law.r2, law.num_points) == ((None, None), None, 2)


def test_an_end_that_the_points_do_not_bound_is_open() -> None:
    law = fit_power_law([1, 10, 100, 1e3, 1e4], [2.0, 1.2, 1.18, 1.1, 1.16])
    assert law.offset_is_free and law.interval[0] is not None and law.interval[1] is None


def test_a_rising_loss_has_a_negative_exponent() -> None:
    law = fit_power_law(list(X), list(3 * X**0.1))
    assert law.exponent == pytest.approx(-0.1) and not law.offset_is_free


def test_losses_below_zero_need_an_offset() -> None:
    losses = list(-2 + 30 * X**-0.3)
    assert fit_power_law(list(X), losses).offset == pytest.approx(-2)
    with pytest.raises(ValueError, match=r"a loss is -1\.\d+, so .* an offset needs 4 points"):
        fit_power_law(list(X[-3:]), losses[-3:])


def test_the_unit_of_x_does_not_matter() -> None:
    losses = list(2.5 + 30 * X**-0.3 + 0.01 * np.array([1, -1, 2, 0, -2, 1]))
    a, b = fit_power_law(list(X), losses), fit_power_law(list(X * 1e12), losses)
    assert b.exponent == pytest.approx(a.exponent) and b.offset == pytest.approx(a.offset)
    assert b.scale == pytest.approx(a.scale * 1e12**a.exponent, rel=1e-4)


@pytest.mark.parametrize(
    ("x", "losses", "message"),
    [
        ([1e3], [2.0], "needs 2 different values or more, not 1"),
        ([1e3, 1e3], [2.0, 2.1], "needs 2 different values or more, not 1"),
        ([], [], "not 0"),
        ([0.0, 1.0], [2.0, 1.0], "above 0"),
        ([1.0, 2.0], [2.0, float("nan")], "finite"),
        ([1.0, 2.0], [2.0], "one each"),
    ],
)
def test_what_is_no_curve_is_refused(x: list[float], losses: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power_law(x, losses)


@pytest.mark.parametrize(
    ("dof", "quantile"), [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (10, 2.228139), (31, 2.039513)]
)
def test_student_quantiles_are_those_of_the_tables(dof: int, quantile: float) -> None:
    assert student_quantile(dof) == pytest.approx(quantile, abs=1e-6)


def test_the_frontier_is_what_nothing_cheaper_beats() -> None:
    assert frontier([4, 1, 2, 3, 2], [2.0, 5.0, 4.0, 4.0, 3.0]) == [1, 4, 0]


def study_point(size: str, images: int, parameters: int) -> StudyPoint:
    steps = (10, 20, 40, 80)
    losses = tuple(2 + 9 * parameters**-0.5 + 4 * images**-0.5 + 5 / s for s in steps)
    return StudyPoint(size, images, parameters + 7, parameters, 6.0 * parameters, steps, losses, "nats per token")


def test_a_study_fits_each_axis_at_what_the_others_are() -> None:
    points = [study_point(f"w{n}", d, n * n) for d in (400, 100) for n in (2, 4, 8, 16, 32)]
    series = {(s.against, s.of): s for s in study_series(points)}
    assert {name for name, _ in series} == {"steps", "parameters", "data", "compute"}
    sizes = series["parameters", "100 images"]
    assert sizes.x == (4, 16, 64, 256, 1024) and sizes.law is not None
    assert sizes.law.exponent == pytest.approx(0.5) and sizes.law.offset == pytest.approx(2 + 0.4 + 5 / 80)
    data = series["data", "w8"]
    assert data.x == (100, 400) and data.law is not None and data.law.r2 is None
    steps = series["steps", "w2"]
    assert steps.x == (10, 20, 40, 80) and steps.loss == points[0].losses
    assert {of for name, of in series if name == "steps"} == {"w2", "w4", "w8", "w16", "w32"}
    compute = series["compute", "the best of all sizes"]
    assert list(compute.x) == sorted(compute.x) and list(compute.loss) == sorted(compute.loss, reverse=True)
    assert (240.0, points[0].losses[0]) == (compute.x[0], compute.loss[0])


def test_one_value_on_an_axis_is_no_law_and_says_so() -> None:
    series = study_series([study_point("w2", 100, 4), study_point("w4", 100, 16)])
    assert [s.problem for s in series if s.against == "data"] == [
        "a power law needs 2 different values or more, not 1; add sizes or data."
    ] * 2


def test_a_point_counts_its_lowest_loss() -> None:
    """An over-trained point ends worse than it was."""
    point = StudyPoint("w2", 10, 9, 4, 1.0, (1, 2, 3), (3.0, 2.0, 2.5), "nats per token")
    assert (point.lowest, point.lowest_step) == (2.0, 2)
    assert point.after(2).losses == (2.5,) and point.after(2).lowest_step == 3
