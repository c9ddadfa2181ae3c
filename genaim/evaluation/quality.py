"""Figures of generated images from features: FID, KID, Inception score, precision and recall, by torch-fidelity.

    FID  Frechet distance of two Gaussians (Heusel et al. 2017, https://arxiv.org/abs/1706.08500, eq. 6)
    KID  squared maximum mean discrepancy (Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401, section 4)
    IS   Inception score (Salimans et al. 2016, https://arxiv.org/abs/1606.03498, section 4)
    P/R  precision and recall (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991, section 2)

Features are the caller's choice, and figures compare only at equal features and numbers of images. Standard errors come
from resampling: FID is biased upwards at few images, by more than its standard error tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FeatureSet = Mapping[str, Tensor]
"""Features (M, F) by the name of their layer, on the CPU, as the extractor gave them."""
SPLITS = 10  # of the Inception score
KID_SUBSET = 1000
NEIGHBOURS = 3  # k of precision and recall
DISTANCE_BYTES = 2e9  # of the distances that precision and recall hold at a time
BYTES_PER_DISTANCE = 16  # float32, torch's copy of it, and an int64 index while it looks for the k-th nearest
MIN_IMAGES = SPLITS  # fewer leave a split of the Inception score empty
BOOTSTRAP_SEED = 2020


class Figure(NamedTuple):
    """A measured number."""

    value: float
    error: float | None = None
    """FID: standard error by the bootstrap over the generated images. KID and IS: standard deviation over the subsets
    or splits, as they are published."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    """Share of generated images that look real."""
    recall: float
    """Share of real images that could have been generated."""


class Statistics(NamedTuple):
    """What FID keeps of features: their mean and covariance."""

    mu: np.ndarray
    """(F,)."""
    sigma: np.ndarray
    """(F, F)."""


@dataclass(frozen=True)
class Protocol:
    """How figures are computed; the layers are the extractor's."""

    kid: bool = True
    """Whether KID belongs to it."""
    shuffle: bool = True
    """Whether the splits of the Inception score are drawn; contiguous otherwise."""


PROTOCOLS = {
    # guided-diffusion/evaluations: no KID; contiguous splits (of 5,000, which are these ten at 50,000 images);
    # precision and recall from the features of FID. Its sFID is missing: torch-fidelity has no spatial features.
    "adm": Protocol(kid=False, shuffle=False),
    # torch-fidelity's defaults, but for precision and recall, which come from the features of FID, not from VGG-16
    "fidelity": Protocol(),
}


@dataclass(frozen=True)
class Layers:
    """Which features a figure takes; None leaves it out."""

    features: str
    """FID, KID, precision and recall."""
    logits: str | None = None
    """Inception score: class logits."""


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with."""

    features: Tensor | None
    """(L, F); None where only their statistics are known."""
    statistics: Statistics | None = None
    """Those of FID; None takes them from the features."""


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """``|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of two sets of features, in float64.

    Args:
        features: (M, F), at least two rows.
        others: (L, F).

    Raises:
        ValueError: If torch-fidelity is not installed, or the sets do not fit.
    """
    if features.dim() != 2 or others.dim() != 2 or features.shape[1] != others.shape[1]:
        raise ValueError(
            f"features must be (M, F) and (L, F), not {tuple(features.shape)} and {tuple(others.shape)}; flatten them."
        )
    if min(len(features), len(others)) < 2:
        raise ValueError(f"a covariance needs 2 images or more, not {len(features)} and {len(others)}.")
    sets = (features_to_statistics(x.detach().to("cpu", torch.float64)) for x in (features, others))
    return statistics_to_distance(*sets)


def features_to_statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (M, F) on the CPU.

    Raises:
        ValueError: If torch-fidelity is not installed.
    """
    found = fidelity("metric_fid").fid_features_to_statistics(features)
    return Statistics(found["mu"], found["sigma"])


def statistics_to_distance(a: Statistics, b: Statistics) -> float:
    """Frechet distance of two Gaussians.

    Raises:
        ValueError: If they have different numbers of features.
    """
    if a.mu.shape != b.mu.shape:
        raise ValueError(
            f"statistics of {len(a.mu)} features cannot be compared with those of {len(b.mu)}; use one extractor."
        )
    metric = fidelity("metric_fid")
    dtype = np.promote_types(a.mu.dtype, b.mu.dtype)  # torch-fidelity asks for equal ones
    sets = [{"mu": s.mu.astype(dtype), "sigma": s.sigma.astype(np.float64)} for s in (a, b)]
    return float(metric.fid_statistics_to_metric(*sets, verbose=False)[metric.KEY_METRIC_FID])


def precision_recall(generated: Tensor, real: Tensor, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Precision and recall of generated images against real ones.

    A set of features stands for the region it covers: the union of the balls around its members that reach to the
    member's k-th nearest other member. Precision is the share of generated images inside the real region, recall the
    share of real images inside the generated one. Both are high only if the images are right *and* varied.

    Distances are of the features' type, by matrix products: they are rounded, equal images are not quite at distance 0,
    and an image that lies on the surface of a ball to the last digits may count as inside or not.

    Args:
        generated: Features, (M, F).
        real: Features, (L, F).
        k: Which neighbour gives the radius of a ball.

    Raises:
        ValueError: If torch-fidelity is not installed, a set has no k-th neighbour, or the features differ in length.
    """
    if generated.dim() != 2 or real.dim() != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"features must be (M, F) and (L, F), not {tuple(generated.shape)} and {tuple(real.shape)}; flatten them."
        )
    if k < 1 or min(len(generated), len(real)) <= k:
        raise ValueError(f"k = {k} needs more than {k} images in each set, not {len(generated)} and {len(real)}.")
    metric = fidelity("metric_prc")
    found = metric.prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=k,
        prc_batch_size=rows_at_a_time(max(len(generated), len(real))),
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(found[metric.KEY_METRIC_PRECISION], found[metric.KEY_METRIC_RECALL])


def rows_at_a_time(count: int) -> int:
    """Images whose distances to ``count`` others fit in `DISTANCE_BYTES`: 97 of 1.28 million.

    10,000 is torch-fidelity's own number, with which 1.28 million would take 200 GB. Below 26 rows torch leaves matrix
    products, and 2,048 features take ten times as long; else the number costs no time. At 2,048 features a pair of
    images takes 80 ns of one core: 50,000 against 50,000 take 13 minutes, against 1.28 million 40 hours.
    """
    return max(32, min(10_000, int(DISTANCE_BYTES / (BYTES_PER_DISTANCE * count))))


def quality(
    generated: FeatureSet,
    reference: Reference,
    layers: Layers,
    protocol: Protocol,
    *,
    bootstrap: int = 0,
) -> dict[str, Figure]:
    """Figures of generated images against a reference.

    Args:
        generated: Features of M images.
        reference: What they are compared with.
        layers: Which features a figure takes.
        protocol: How it is computed.
        bootstrap: Resamplings for the standard error of FID; 0 gives none.

    Returns:
        ``fid``, ``kid``, ``precision``, ``recall`` and ``inception_score``, those that there are.

    Raises:
        ValueError: If there are too few images, or the reference is of other features.
    """
    features = generated[layers.features]
    check_count(len(features), "generated images")
    statistics = reference.statistics
    if reference.features is not None:
        check_count(len(reference.features), "reference images")
        if reference.features.shape[1] != features.shape[1]:
            raise ValueError(
                f"the reference has {reference.features.shape[1]} features an image, and the generated images have "
                f"{features.shape[1]}; use one extractor for both."
            )
        statistics = statistics or features_to_statistics(reference.features)
    if statistics is None:
        raise ValueError("the reference has neither features nor statistics.")
    found = {"fid": Figure(statistics_to_distance(features_to_statistics(features), statistics))}
    if bootstrap:
        found["fid"] = Figure(found["fid"].value, bootstrap_error(features, statistics, bootstrap))
    if reference.features is not None:
        if protocol.kid:
            found["kid"] = _kid(features, reference.features)
        shares = precision_recall(features, reference.features)
        found |= {"precision": Figure(shares.precision), "recall": Figure(shares.recall)}
    if layers.logits is not None:
        found["inception_score"] = _inception_score(generated[layers.logits], protocol.shuffle)
    return found


def bootstrap_error(features: Tensor, statistics: Statistics, resamplings: int) -> float:
    """Standard error of FID: its standard deviation over sets that are drawn with replacement from the features.

    The trace of the root is that of ``(R S R)^(1/2)`` with R the root of the reference's covariance: symmetric, and
    several times faster than torch-fidelity's eigenvalues of ``S1 S2`` at 2,048 features.
    """
    x = features.double()
    mu, sigma = (torch.from_numpy(np.asarray(part, np.float64)) for part in statistics)
    values, vectors = torch.linalg.eigh(sigma)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT  # (F, F)
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    distances = []
    for _ in range(resamplings):
        drawn = x[torch.randint(len(x), (len(x),), generator=generator)]
        covariance = torch.cov(drawn.mT)
        overlap = torch.linalg.eigvalsh(root @ covariance @ root).clamp_min(0).sqrt().sum()
        shift = (drawn.mean(0) - mu).square().sum()
        distances.append(shift + covariance.trace() + sigma.trace() - 2 * overlap)
    return torch.stack(distances).std().item()


def check_count(count: int, what: str) -> None:
    """Raises ValueError if there are too few images for the statistics."""
    if count < MIN_IMAGES:
        raise ValueError(f"{count} {what} are too few for the statistics; give {MIN_IMAGES} or more.")


def fidelity(module: str) -> Any:
    """A module of torch-fidelity.

    Raises:
        ValueError: If it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"torch_fidelity.{module}")
    except ImportError:
        raise ValueError("these figures need torch-fidelity; run pip install 'genaim[eval]'.") from None


def _kid(features: Tensor, others: Tensor) -> Figure:
    metric = fidelity("metric_kid")
    subset = min(KID_SUBSET, len(features), len(others))
    found = metric.kid_features_to_metric(features, others, kid_subset_size=subset, verbose=False)
    whole = subset == max(len(features), len(others))  # then all subsets are the same one
    return Figure(found[metric.KEY_METRIC_KID_MEAN], None if whole else found[metric.KEY_METRIC_KID_STD])


def _inception_score(logits: Tensor, shuffle: bool) -> Figure:
    metric = fidelity("metric_isc")
    found = metric.isc_features_to_metric(logits, splits=SPLITS, shuffle=shuffle)
    return Figure(found[metric.KEY_METRIC_ISC_MEAN], found[metric.KEY_METRIC_ISC_STD])
