"""Probes of frozen features: nearest neighbours, logistic regression, and what is trained step by step.

Their numbers are those of `probe_protocols`. Predictions for an image depend on the training images alone, not on the
images that are judged beside it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genaim.evaluation.probe_protocols import KNN, Logistic, Protocol
from genaim.evaluation.probe_training import Report, Training, plan, shuffled, train_classifier
from genaim.models import AttentiveProbe, AttentiveProbeConfig

HELD_OUT = 0.1  # share of the training images on which penalties and learning rates are chosen
CHUNK = 1000  # rows of similarities, or images of a probe in evaluation, held at a time


class Scores(NamedTuple):
    """What one training of a probe reached."""

    accuracy: float
    """Share of the test images whose class the probe said."""
    images: int
    """How many test images there were."""
    held_out: float | None = None
    """Its accuracy on held-out training images, by which learning rates are chosen; None where none are held out."""


def learning_rates(protocol: Protocol) -> tuple[float | None, ...]:
    """Those among which a protocol chooses; one None where it trains nothing step by step."""
    return protocol.lrs if isinstance(protocol, Training) else (None,)


def chosen(scores: Iterable[Scores]) -> Scores:
    """The scores of the learning rate that is best on the held-out images, the first of equal ones."""
    return max(scores, key=lambda found: found.held_out or 0.0)


def probe_scores(
    protocol: Protocol,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    lr: float | None = None,
    num_heads: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Scores:
    """Fits a probe of frozen features and judges it.

    Args:
        protocol: What to do; not one of a whole model.
        train: Features, (M, F), or (M, N, D) for protocols of patches, and labels (M,) int64.
        test: The same of the images that are judged.
        num_classes: Classes.
        lr: One of the protocol's `learning_rates`.
        num_heads: Attention heads of the attentive probe.
        seed: Seed of the initial weights, of the order of images, and of the part that is held out.
        device: Where to compute.
        report: Told about every step of training.

    Raises:
        ValueError: If there are too few images.
    """
    (features, labels), (others, truth) = ((x.to(device), y.to(device)) for x, y in (train, test))
    share = None
    if isinstance(protocol, KNN):
        found = knn(features, labels, others, num_classes, k=protocol.k, temperature=protocol.temperature)
    elif isinstance(protocol, Logistic):
        found = logistic(features, labels, others, num_classes, protocol, seed=seed)
    else:
        assert lr is not None
        found, share = trained(
            features, labels, others, num_classes, protocol, lr, num_heads=num_heads, seed=seed, report=report
        )
    return Scores((found == truth).double().mean().item(), len(truth), share)


def held_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random tenth of the rows on which choices are made, at least one, and the rows to train on."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: max(1, round(HELD_OUT * count))], order[max(1, round(HELD_OUT * count)) :]


# Nearest neighbours


@torch.no_grad()
def knn(
    features: Tensor, labels: Tensor, others: Tensor, num_classes: int, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class that the nearest training images vote for, each by the exponential of its cosine similarity.

    Args:
        features: Of training images, (M, F).
        labels: Their classes, (M,) int64.
        others: Features of the images to classify, (L, F).
        num_classes: Classes.
        k: How many vote; of fewer training images all do.
        temperature: Divides the similarity.

    Returns:
        (L,) int64.
    """
    known, k = F.normalize(features, dim=1), min(k, len(features))
    found = []
    for part in F.normalize(others, dim=1).split(CHUNK):
        similarity, index = (part @ known.T).topk(k, dim=1)
        votes = torch.zeros(len(part), num_classes, dtype=known.dtype, device=known.device)
        found.append(votes.scatter_add_(1, labels[index], (similarity / temperature).exp()).argmax(1))
    return torch.cat(found)


# Linear


def logistic(
    features: Tensor, labels: Tensor, others: Tensor, num_classes: int, protocol: Logistic, *, seed: int = 0
) -> Tensor:
    """Classes by logistic regression, whose penalty is the best on a part of the training images that is held out.

    Args:
        features: Of training images, (M, F); standardised here by their mean and deviation.
        labels: Their classes, (M,) int64.
        others: Features of the images to classify, (L, F).
        num_classes: Classes.
        protocol: The penalties.
        seed: Seed of the part that is held out.

    Returns:
        (L,) int64.
    """
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    features, others = (features - mean) / deviation, (others - mean) / deviation
    held, kept = (rows.to(features.device) for rows in held_out(len(features), seed))
    best, penalty, start = -1.0, protocol.penalties[0], None
    for candidate in protocol.penalties if len(kept) else ():
        start = fit_logistic(features[kept], labels[kept], num_classes, candidate, protocol.max_iterations, start)
        right = (scores(start, features[held]).argmax(1) == labels[held]).double().mean().item()
        if right > best:
            best, penalty = right, candidate
    fitted = fit_logistic(features, labels, num_classes, penalty, protocol.max_iterations, start)
    return scores(fitted, others).argmax(1)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalty: float,
    max_iterations: int = 1000,
    start: Tensor | None = None,
) -> Tensor:
    """Minimises the mean cross-entropy plus ``penalty / 2`` times the squared weights, by L-BFGS.

    The problem is strictly convex in the weights: its optimum depends on neither `start` nor any order or batch.

    Args:
        features: (M, F).
        labels: (M,) int64.
        num_classes: Classes.
        penalty: At least 0; biases are free.
        max_iterations: Of L-BFGS.
        start: Weights to begin with; None is 0.

    Returns:
        Weights with the biases in the last column, (num_classes, F + 1).
    """
    fresh = features.new_zeros(num_classes, features.shape[1] + 1)
    weights = (fresh if start is None else start.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=max_iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scores(weights, features), labels) + penalty / 2 * weights[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def scores(weights: Tensor, features: Tensor) -> Tensor:
    """Logits of features (M, F) by weights with biases in the last column, (num_classes, F + 1)."""
    return F.linear(features, weights[:, :-1], weights[:, -1])


# Trained probes


def trained(
    features: Tensor,
    labels: Tensor,
    others: Tensor,
    num_classes: int,
    training: Training,
    lr: float,
    *,
    num_heads: int = 1,
    seed: int = 0,
    report: Report | None = None,
) -> tuple[Tensor, float | None]:
    """Classes by a probe that is trained step by step at one learning rate.

    Where the schedule has several learning rates to choose from, a part of the training images is held out.

    Args:
        features: Of training images, (M, F) or (M, N, D).
        labels: Their classes, (M,) int64.
        others: Features of the images to classify.
        num_classes: Classes.
        training: The schedule.
        lr: The learning rate.
        num_heads: Attention heads of the attentive probe.
        seed: Seed of the initial weights, of the order of images, and of the part that is held out.
        report: Told about every step.

    Returns:
        (L,) int64, and the accuracy on the held-out part, None without a choice.
    """
    held, kept = held_out(len(features), seed)
    if len(training.lrs) == 1:
        held, kept = held[:0], torch.arange(len(features))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make_probe(training, features.shape[-1], num_heads, num_classes).to(features.device)
    wanted = plan(training, len(kept), lr)
    rows = (kept[step].to(features.device) for step in shuffled(len(kept), wanted, seed))
    train_classifier(module, ((features[r], labels[r]) for r in rows), training, wanted, report=report)
    share = (classify(module, features[held]) == labels[held]).double().mean().item() if len(held) else None
    return classify(module, others), share


def make_probe(training: Training, width: int, num_heads: int, num_classes: int) -> nn.Module:
    """What is trained on frozen features, with fresh weights.

    Features never change, so that the norms average the statistics of all batches alike: a few steps are enough.
    """
    if training.module == "attentive":
        probe = AttentiveProbe(AttentiveProbeConfig(width=width, num_heads=num_heads, num_classes=num_classes))
        probe.norm.momentum = None
        return probe
    linear = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, momentum=None, affine=False), linear)


@torch.no_grad()
def classify(module: nn.Module, inputs: Tensor) -> Tensor:
    """The most likely class of every row, (L,) int64, by a module in evaluation mode; rows are independent."""
    return torch.cat([module(part).argmax(1) for part in inputs.split(CHUNK)])
