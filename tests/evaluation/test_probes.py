"""Probes meet their closed forms, find classes that can be told apart, and judge every image by itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genaim.evaluation.probe_protocols import KNN, PROTOCOLS, Logistic, Protocol, choose_protocols, of_patches
from genaim.evaluation.probe_training import LARS, Training, plan, shuffled
from genaim.evaluation.probes import (
    Scores,
    chosen,
    classify,
    fit_logistic,
    held_out,
    knn,
    learning_rates,
    logistic,
    make_probe,
    probe_scores,
    scores,
    trained,
)

CLASSES = 4
ATTENTIVE = PROTOCOLS["attentive"]
SHORT = replace(ATTENTIVE, epochs=12, batch_size=32, lrs=(1e-2,))


def clusters(count: int, spread: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around the corners of a square in 8 dimensions; the corners of all seeds are the same."""
    labels = torch.arange(count) % CLASSES
    corners = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return corners[labels] + spread * noise, labels


def patches(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One of nine patches carries the class, the others are noise."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(98))
    labels = torch.arange(count) % CLASSES
    features = 0.3 * torch.randn(count, 9, 16, generator=generator)
    features[torch.arange(count), torch.randint(9, (count,), generator=generator)] += 3 * codes[labels]
    return features, labels


def probe_accuracy(protocol: Protocol, *arguments: Any, **options: Any) -> float:
    """Accuracy of the learning rate that a protocol chooses."""
    rates = learning_rates(protocol)
    return chosen([probe_scores(protocol, *arguments, lr=lr, **options) for lr in rates]).accuracy


# Nearest neighbours


@pytest.mark.parametrize("k", [1, 20, 1000])
def test_neighbours_tell_clusters_apart(k: int) -> None:
    """With more neighbours than images all vote, and the near ones still decide."""
    (features, labels), (others, truth) = clusters(80), clusters(40, seed=1)
    assert knn(features, labels, others, CLASSES, k=k).equal(truth)


def test_votes_are_weighted_by_similarity() -> None:
    """Written out for every image: exp(cosine / T), summed by class over the k most similar."""
    (features, labels), (others, _) = clusters(30, spread=2.0), clusters(25, spread=2.0, seed=1)
    k, temperature = 7, 0.5
    found = knn(features, labels, others, CLASSES, k=k, temperature=temperature)
    for other, answer in zip(others, found.tolist(), strict=True):
        similar = [(F.cosine_similarity(other, f, dim=0).item(), int(c)) for f, c in zip(features, labels, strict=True)]
        votes = [0.0] * CLASSES
        for cosine, label in sorted(similar, reverse=True)[:k]:
            votes[label] += torch.tensor(cosine / temperature).exp().item()
        assert answer == max(range(CLASSES), key=votes.__getitem__)


def test_one_near_neighbour_outweighs_two_far_ones() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, other = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.1]])
    assert knn(features, labels, other, 2, k=3, temperature=0.07).tolist() == [0]
    assert knn(features, labels, other, 2, k=3, temperature=100.0).tolist() == [1]


# Logistic regression


def newton(features: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """The optimum by Newton's method on the flattened weights."""
    weights = torch.zeros(CLASSES, features.shape[1] + 1, dtype=torch.float64)
    decay = torch.ones_like(weights)
    decay[:, -1] = 0

    def loss(flat: Tensor) -> Tensor:
        w = flat.view_as(weights)
        return F.cross_entropy(scores(w, features), labels) + penalty / 2 * (w.square() * decay).sum()

    flat = weights.flatten()
    for _ in range(12):
        gradient = torch.autograd.functional.jacobian(loss, flat)
        hessian = torch.autograd.functional.hessian(loss, flat)
        flat = flat - torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]
    return flat.view_as(weights)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_logistic_regression_meets_its_optimum(penalty: float) -> None:
    """From any start; a strongly convex problem is as far from its optimum as its gradient over the penalty at most."""
    features, labels = clusters(40, spread=1.5)
    exact = newton(features, labels, penalty)
    others, _ = clusters(20, spread=1.5, seed=1)
    for start in (None, torch.randn_like(exact)):
        found = fit_logistic(features, labels, CLASSES, penalty, start=start)
        torch.testing.assert_close(found[:, :-1], exact[:, :-1], rtol=0, atol=1e-5 / penalty)
        likely, wanted = (scores(weights, others).softmax(1) for weights in (found, exact))
        torch.testing.assert_close(likely, wanted, rtol=0, atol=1e-3)  # biases are free up to a common number


def test_linear_probes_separate_what_can_be_separated() -> None:
    (features, labels), (others, truth) = clusters(80), clusters(40, seed=1)
    assert logistic(1e3 * features, labels, 1e3 * others, CLASSES, Logistic()).equal(truth)
    noise = torch.randn(400, 8, dtype=torch.float64)
    chance = logistic(noise[:200], torch.arange(200) % CLASSES, noise[200:], CLASSES, Logistic())
    assert 0.1 < (chance == torch.arange(200) % CLASSES).double().mean() < 0.4


def test_the_penalty_is_chosen_on_images_that_are_held_out() -> None:
    """A quarter of the labels is wrong: who fits them all is worse, and is not taken."""
    labels = torch.arange(300) % 2
    features, others = torch.randn(300, 100, dtype=torch.float64), torch.randn(2000, 100, dtype=torch.float64)
    features[:, 0] += 6.0 * labels
    others[:, 0] += 6.0 * (torch.arange(2000) % 2)
    labels = torch.where(torch.rand(300) < 0.25, 1 - labels, labels)

    def accuracy(*penalties: float) -> float:
        found = logistic(features, labels, others, 2, Logistic(penalties=penalties))
        return (found == torch.arange(2000) % 2).double().mean().item()

    assert accuracy(0.3) == accuracy(0.3, 1e-7) > accuracy(1e-7) + 0.02
    held, kept = held_out(80, 0)
    assert len(held) == 8 and torch.cat([held, kept]).sort().values.equal(torch.arange(80))


# Probes that are trained


def test_an_attentive_probe_finds_the_patch_that_tells_the_class() -> None:
    train, test = patches(256), patches(128, seed=1)
    assert probe_accuracy(SHORT, train, test, CLASSES, num_heads=2) > 0.95
    pooled = (train[0].mean(1), train[1]), (test[0].mean(1), test[1])
    assert probe_accuracy(Logistic(), *pooled, CLASSES) > 0.5


def test_the_best_of_several_learning_rates_is_taken() -> None:
    train, test = patches(256), patches(128, seed=1)
    useless = replace(SHORT, lrs=(1e-7,))
    assert probe_accuracy(useless, train, test, CLASSES) < 0.6
    told: list[tuple[int, int]] = []
    both = replace(SHORT, lrs=(1e-7, 1e-2))
    found = probe_accuracy(both, train, test, CLASSES, report=lambda *steps: told.append(steps))
    assert found > 0.9
    assert told == 2 * [(step, 84) for step in range(1, 85)]  # 230 images are left, 7 batches of 32
    assert chosen([Scores(0.9, 10, 0.5), Scores(0.1, 10, 0.7), Scores(0.8, 10, 0.7)]).accuracy == 0.1


def test_the_linear_probe_of_mae_learns() -> None:
    """Its steps are small shares of the weights, so it takes hundreds of them."""
    train, test = clusters(64), clusters(40, seed=1)
    train, test = ((features.float(), labels) for features, labels in (train, test))
    mae = replace(PROTOCOLS["linear-mae"], epochs=300, lrs=(20.0,))
    assert probe_accuracy(mae, train, test, CLASSES) > 0.95


@pytest.mark.parametrize("training", [SHORT, PROTOCOLS["linear-mae"]])
def test_judged_images_are_independent_of_each_other(training: Training) -> None:
    features = torch.randn(6, 9, 16) if of_patches(training) else torch.randn(6, 16)
    module = make_probe(training, 16, 2, CLASSES)
    module(features)  # statistics that are not those of the start
    module.eval()
    torch.testing.assert_close(torch.cat([module(row[None]) for row in features]), module(features))
    assert classify(module, features).equal(module(features).argmax(1))


def test_a_seed_decides_a_training_and_nothing_else_is_touched() -> None:
    (features, labels), (others, _) = patches(64), patches(200, seed=1)
    short = replace(SHORT, epochs=2)
    before = torch.random.get_rng_state()
    found = [trained(features, labels, others, CLASSES, short, 1e-2, seed=seed)[0] for seed in (3, 3, 4)]
    assert torch.random.get_rng_state().equal(before)
    assert found[0].equal(found[1]) and not found[0].equal(found[2])


def test_features_that_are_not_finite_are_named() -> None:
    features, labels = patches(64)
    with pytest.raises(ValueError, match="step 1 of the probe: the loss is nan"):
        trained(features * float("nan"), labels, features, CLASSES, SHORT, 1e-2)


# Schedules


def test_plans_fit_the_data() -> None:
    whole = plan(ATTENTIVE, 10_000)
    assert (whole.batch_size, whole.steps, whole.optimizer.warmup_steps) == (1024, 900, 45)
    small = plan(replace(ATTENTIVE, epochs=10), 100)
    assert (small.batch_size, small.steps, small.optimizer.warmup_steps) == (100, 10, 0)
    mae = PROTOCOLS["linear-mae"]
    assert plan(mae, 1_281_167).optimizer.lr == pytest.approx(6.4)
    assert plan(mae, 512).optimizer.lr == pytest.approx(0.2)
    with pytest.raises(ValueError, match="1 images in batches of 1 train no probe"):
        plan(mae, 1)


def test_an_epoch_shows_every_image_once() -> None:
    wanted = plan(replace(SHORT, epochs=3, batch_size=5), 20)
    rows = list(shuffled(20, wanted, 0))
    assert len(rows) == wanted.steps == 12
    for epoch in range(3):
        assert torch.cat(rows[4 * epoch : 4 * epoch + 4]).sort().values.equal(torch.arange(20))
    assert not torch.cat(rows[:4]).equal(torch.cat(rows[4:8]))
    odd = list(shuffled(22, plan(replace(SHORT, epochs=2, batch_size=5), 22), 0))
    assert len(odd) == 8 and {len(r) for r in odd} == {5}


def test_a_step_of_lars_is_a_share_of_the_weights() -> None:
    layer = nn.Linear(6, 3)
    before = [parameter.clone() for parameter in layer.parameters()]
    optimizer = LARS([{"params": list(layer.parameters())}], lr=2.0, momentum=0.5)
    for _ in range(2):
        for parameter in layer.parameters():
            parameter.grad = 100 * torch.ones_like(parameter)
        optimizer.step()
    weight, bias = (p - b for p, b in zip(layer.parameters(), before, strict=True))
    first = 2.0 * 1e-3 * before[0].norm()  # of any gradient
    after = before[0] - first * torch.ones(3, 6) / 18**0.5
    second = 0.5 * first + 2.0 * 1e-3 * after.norm()
    torch.testing.assert_close(weight, -(first + second) * torch.ones(3, 6) / 18**0.5)
    torch.testing.assert_close(bias, -2.0 * 100 * (1 + 1.5) * torch.ones(3))


# Protocols


def test_published_numbers() -> None:
    """Those of DINO's eval_knn.py, of MAE's tables 9 and 10, and of AIMv2's table A2."""
    assert PROTOCOLS["knn"] == KNN(k=20, temperature=0.07)
    mae, attentive, tuning = (PROTOCOLS[name] for name in ("linear-mae", "attentive", "finetune"))
    assert (mae.optimizer, mae.lrs, mae.epochs, mae.batch_size, mae.weight_decay) == ("lars", (0.1,), 90, 16384, 0.0)
    assert mae.warmup * mae.epochs == pytest.approx(10)
    assert (attentive.epochs, attentive.batch_size, attentive.weight_decay) == (100, 1024, 0.1)
    assert attentive.lrs == (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3) and attentive.betas == (0.9, 0.999)
    assert attentive.warmup * attentive.epochs == pytest.approx(5) and attentive.clip_norm == 3.0
    assert (tuning.lrs, tuning.layer_decay, tuning.label_smoothing) == ((1e-3,), 0.75, 0.1)


def test_protocols_are_chosen_by_name() -> None:
    chosen = choose_protocols(["linear", "attentive"], epochs=3, batch_size=7, lrs=(0.5,))
    assert chosen == {"linear": Logistic(), "attentive": replace(ATTENTIVE, epochs=3, batch_size=7, lrs=(0.5,))}
    with pytest.raises(ValueError, match="unknown probe 'atentive'; did you mean 'attentive'"):
        choose_protocols(["knn", "atentive"])
    with pytest.raises(ValueError, match="epochs are for the probes linear-mae, attentive, finetune, of which none"):
        choose_protocols(["knn", "linear"], epochs=3)
