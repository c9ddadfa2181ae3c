"""A scaling study: the validation losses of a grid of sizes and data, and the power laws in them.

The loss of a point is its lowest validation loss, that of early stopping: with few images a large model ends worse than
it was. Sizes are told by the parameters of the transformers, without embeddings, positions and head, as Kaplan et al.
(2020, https://arxiv.org/abs/2001.08361) leave out embeddings; compute is `compute.training_flops` times images seen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from genaim.evaluation.scaling import PowerLaw, fit_power_law, frontier


@dataclass(frozen=True)
class StudyPoint:
    """One trained model of the grid."""

    size: str
    """Its size, as it was asked for."""
    images: int
    """Different training images."""
    parameters: int
    """All trained parameters."""
    transformer_parameters: int
    """Those of the transformers alone."""
    flops_per_step: float
    """Operations of a training step."""
    steps: tuple[int, ...]
    """Steps after which it was validated."""
    losses: tuple[float, ...]
    """Validation losses after these steps."""
    loss_unit: str
    """Their unit."""

    @property
    def lowest(self) -> float:
        """The loss of the point."""
        return min(self.losses)

    @property
    def lowest_step(self) -> int:
        """When that was reached."""
        return self.steps[self.losses.index(self.lowest)]

    def after(self, step: int) -> "StudyPoint":
        """The point without its validations up to a step."""
        kept = [i for i, s in enumerate(self.steps) if s > step]
        return replace(self, steps=tuple(self.steps[i] for i in kept), losses=tuple(self.losses[i] for i in kept))


class Series(NamedTuple):
    """Points of a plot, and the law that was fitted to them."""

    against: str
    """steps, parameters, data or compute."""
    of: str
    """What they have in common: a size, or a number of images."""
    x: tuple[float, ...]
    loss: tuple[float, ...]
    law: PowerLaw | None
    """None where nothing could be fitted."""
    problem: str
    """Why not."""


def study_series(points: Sequence[StudyPoint]) -> list[Series]:
    """The losses of a grid against steps, parameters, data and compute, with their laws.

    Against parameters for every number of images, against data for every size; against steps for every size with the
    most images, and against compute for the `frontier` of all sizes with the most images.

    Args:
        points: The grid, best without the validations of the warm-up: its learning rate, not time, limits them.
    """
    most = max(p.images for p in points)
    full = [p for p in points if p.images == most]
    compute = [step * p.flops_per_step for p in full for step in p.steps]
    losses = [loss for p in full for loss in p.losses]
    best = frontier(compute, losses)
    return [
        *(_series("steps", p.size, p.steps, p.losses) for p in full),
        *_grouped(points, "parameters", lambda p: f"{p.images} images", lambda p: p.transformer_parameters),
        *_grouped(points, "data", lambda p: p.size, lambda p: p.images),
        _series("compute", "the best of all sizes", [compute[i] for i in best], [losses[i] for i in best]),
    ]


def _grouped(
    points: Sequence[StudyPoint], against: str, of: Callable[[StudyPoint], str], x: Callable[[StudyPoint], float]
) -> Iterator[Series]:
    for name in dict.fromkeys(of(p) for p in points):
        members = sorted((p for p in points if of(p) == name), key=x)
        yield _series(against, name, [x(p) for p in members], [p.lowest for p in members])


def _series(against: str, of: str, x: Sequence[float], loss: Sequence[float]) -> Series:
    law, problem = None, ""
    try:
        law = fit_power_law(x, loss)
    except ValueError as error:
        problem = str(error)
    return Series(against, of, tuple(x), tuple(loss), law, problem)
