"""Power laws of validation losses: ``L(x) = E + A x^-alpha``, with the exponent's confidence and R2.

Such laws describe language models in parameters, data and compute (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361),
with the offset E, the loss that no model of the kind goes below, since Hoffmann et al. (2022,
https://arxiv.org/abs/2203.15556). VAR (Tian et al. 2024, https://arxiv.org/abs/2404.02905) fits straight lines in
logarithms, which is E = 0. So does `fit_power_law` where there are too few points to tell E.

For a given alpha the law is linear in E and A, so least squares leaves a search in alpha alone (variable projection,
Golub & Pereyra 1973). The sum of squares along it gives the interval too: those exponents at which it is not above
``S_min (1 + t^2 / dof)``, t being Student's 97.5% quantile (profile interval; Bates & Watts 1988, chapter 6). Other
than a covariance it knows that few points may bound an exponent on one side only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MIN_POINTS_OF_OFFSET = 4  # E, A and alpha leave one degree of freedom, of which the interval tells how little it is
MAX_ALPHA = 5.0  # beyond, a law is a step
ROUNDS, GRID = 8, 401  # each round of the search looks 200 times closer
SIGNIFICANT = 1e-12  # of the loss's own size: sums of squares below are rounding


class PowerLaw(NamedTuple):
    """A fitted law, ``L(x) = offset + scale * x^-exponent``."""

    exponent: float
    """alpha; above 0 where the loss falls."""
    interval: tuple[float | None, float | None]
    """95% interval of alpha; None where the points do not bound it, as two points never do."""
    scale: float
    """A, in the unit of the loss times that of x^alpha."""
    offset: float
    """E, in the unit of the loss."""
    offset_is_free: bool
    """Whether E was fitted, or held at 0."""
    r2: float | None
    """Share of the loss's variance that the law explains; None for two points, which any law meets."""
    num_points: int
    """Points that were fitted."""

    def __call__(self, x: Array) -> Array:
        """The loss at x."""
        return self.offset + self.scale * x**-self.exponent


def fit_power_law(x: Sequence[float], loss: Sequence[float]) -> PowerLaw:
    """Least squares of a power law in the loss.

    E is fitted to four points or more, unless the best one is below 0, where no loss of theirs is; else it is 0.

    Args:
        x: Parameters, images, operations or steps, above 0.
        loss: Validation losses.

    Raises:
        ValueError: If there are fewer than two different x, a value is not finite, or E is to be 0 but a loss is not
            above it.
    """
    if len(x) != len(loss) or not np.isfinite([*x, *loss]).all() or min(x, default=1) <= 0:
        raise ValueError("a power law needs finite losses of values above 0, one each.")
    if len(set(x)) < 2:
        raise ValueError(f"a power law needs 2 different values or more, not {len(set(x))}; add sizes or data.")
    values, losses = np.asarray(x, np.float64), np.asarray(loss, np.float64)
    if len(set(x)) >= MIN_POINTS_OF_OFFSET:
        found = _Profile(values, losses, free=True).fit()
        bounded = bool((losses > 0).all())
        if found.scale > 0 and found.exponent < 0.99 * MAX_ALPHA and (found.offset > 0 or not bounded):
            return found
    if not (losses > 0).all():
        raise ValueError(
            f"a loss is {losses.min():.4g}, so a law without offset does not fit it; an offset needs "
            f"{MIN_POINTS_OF_OFFSET} points."
        )
    return _Profile(values, losses, free=False).fit()


class _Profile:
    """The least sum of squares at every exponent.

    With u = log(x / geometric mean), the law is ``a + b z`` where z is (exp(-alpha u) - 1) / alpha if E is free, which
    tends to the logarithm for small alpha and so stays well conditioned, and ``b exp(-alpha u)`` if it is 0.
    """

    def __init__(self, x: Array, loss: Array, *, free: bool) -> None:
        self.x, self.loss, self.free = x, loss, free
        self.centre = float(np.log(x).mean())
        self.u = np.log(x) - self.centre
        self.lowest = 1e-6 if free else -MAX_ALPHA

    def solve(self, alpha: Array) -> tuple[Array, Array, Array]:
        """Intercepts, slopes and sums of squares at exponents, (n,) each."""
        exponents = -alpha[:, None] * self.u
        if self.free:
            z = np.expm1(exponents) / alpha[:, None]
            z_mean, mean = z.mean(1, keepdims=True), self.loss.mean()
            b = ((z - z_mean) * (self.loss - mean)).sum(1) / ((z - z_mean) ** 2).sum(1)
            a = mean - b * z_mean[:, 0]
        else:
            z = np.exp(exponents)
            b = (z * self.loss).sum(1) / (z * z).sum(1)
            a = np.zeros_like(b)
        return a, b, ((self.loss - a[:, None] - b[:, None] * z) ** 2).sum(1)

    def minimum(self) -> float:
        """The best exponent, by a grid that is refined around its best point."""
        low, high = self.lowest, MAX_ALPHA
        for _ in range(ROUNDS):
            grid = np.linspace(low, high, GRID)
            best = int(self.solve(grid)[2].argmin())
            low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)])
        return float(grid[best])

    def crossing(self, best: float, bound: float, limit: float) -> float | None:
        """Between the best exponent and a bound: where the sum of squares reaches the limit; None if it does not."""
        grid = np.linspace(best, bound, GRID)
        above = self.solve(grid)[2] > limit
        if not above.any():
            return None
        first = int(above.argmax())
        inside, outside = float(grid[max(first - 1, 0)]), float(grid[first])
        for _ in range(60):
            middle = 0.5 * (inside + outside)
            inside, outside = (inside, middle) if self.solve(np.array([middle]))[2][0] > limit else (middle, outside)
        return inside

    def fit(self) -> PowerLaw:
        """The law of the best exponent, with its interval."""
        alpha = self.minimum()
        a, b, squares = (float(v[0]) for v in self.solve(np.array([alpha])))
        dof = len(self.x) - (3 if self.free else 2)
        interval: tuple[float | None, float | None] = (None, None)
        variance = float(((self.loss - self.loss.mean()) ** 2).sum())
        r2 = None
        if dof > 0:
            limit = squares * (1 + student_quantile(dof) ** 2 / dof) + (SIGNIFICANT * np.abs(self.loss).max()) ** 2
            interval = self.crossing(alpha, self.lowest, limit), self.crossing(alpha, MAX_ALPHA, limit)
            r2 = 1 - squares / variance if variance > 0 else 1.0
        scale = (b / alpha if self.free else b) * math.exp(alpha * self.centre)
        return PowerLaw(alpha, interval, scale, a - b / alpha if self.free else 0.0, self.free, r2, len(self.x))


def student_quantile(dof: int, probability: float = 0.975) -> float:
    """The quantile of Student's t distribution, by bisection of its closed form for whole degrees of freedom.

    Abramowitz & Stegun 1964, equations 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _student_cdf(middle, dof) < probability else (low, middle)
    return 0.5 * (low + high)


def _student_cdf(t: float, dof: int) -> float:
    theta = math.atan(t / math.sqrt(dof))
    cosine = math.cos(theta)
    term = total = cosine if dof % 2 else 1.0
    for k in range(3 if dof % 2 else 2, dof - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = math.sin(theta) * total if dof > 1 else 0.0
    return 0.5 + 0.5 * (2 / math.pi * (theta + inside) if dof % 2 else inside)


def frontier(compute: Sequence[float], loss: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats at the same or less compute, in the order of compute.

    The lowest losses that a compute reaches, over all sizes; what a compute-optimal law is fitted to.
    """
    order = sorted(range(len(compute)), key=lambda i: (compute[i], loss[i]))
    kept: list[int] = []
    for i in order:
        if not kept or loss[i] < loss[kept[-1]]:
            kept.append(i)
    return kept
