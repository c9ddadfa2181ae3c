"""A sweep probes every layer with every protocol, whatever fits in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from genaim.core.progress import SilentProgress
from genaim.data import Batch
from genaim.evaluation import features
from genaim.evaluation.features import ModelFeatures, extract
from genaim.evaluation.probe_protocols import PROTOCOLS
from genaim.evaluation.probe_sweep import LabelledImages, Unit, sweep
from genaim.evaluation.probes import Scores, chosen, probe_scores
from tests.evaluation.test_features import make_aim

PROBES = {"knn": PROTOCOLS["knn"], "short": replace(PROTOCOLS["attentive"], epochs=2, batch_size=8, lrs=(1e-2,))}


def images(seed: int, count: int) -> LabelledImages:
    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for first in range(0, count, 10):
            rows = torch.arange(first, first + 10)
            content = torch.rand(10, 3, 8, 8, generator=generator) * 2 - 1
            yield Batch(content, rows % 3, rows, rows - first)

    return LabelledImages(batches, count)


def test_every_layer_with_every_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    source, train, test = ModelFeatures(make_aim()), images(0, 40), images(1, 20)
    found = list(sweep(source, train, test, 3, PROBES, name="aim", progress=SilentProgress()))
    assert [(row.layer, row.probe) for row in found] == [(layer, p) for layer in source.layers for p in PROBES]
    kept = [extract(source, some.batches(), patches_of=["1"]) for some in (train, test)]
    pooled, patches = ([(f.pooled["1"], f.labels) for f in kept], [(f.patches["1"], f.labels) for f in kept])
    one = {row.probe: row for row in found if row.layer == "1"}
    assert one["knn"].accuracy == probe_scores(PROBES["knn"], *pooled, 3).accuracy
    assert one["short"].accuracy == probe_scores(PROBES["short"], *patches, 3, lr=1e-2, num_heads=2).accuracy
    share = one["knn"].accuracy
    assert one["knn"].standard_error == pytest.approx((share * (1 - share) / 20) ** 0.5)
    monkeypatch.setattr(features, "PATCH_BYTES", 1)  # one layer at a time
    assert list(sweep(source, train, test, 3, PROBES, name="aim", progress=SilentProgress())) == found


def test_what_is_finished_is_not_measured_again() -> None:
    """A learning rate is a unit of its own; features of finished layers are not extracted."""
    probes = {"knn": PROTOCOLS["knn"], "short": replace(PROBES["short"], lrs=(1e-3, 1e-2))}
    model, train, test = make_aim(), images(0, 40), images(1, 20)
    options = {"name": "aim", "progress": SilentProgress()}
    finished: dict[Unit, Scores] = {}
    whole = list(sweep(ModelFeatures(model), train, test, 3, probes, finished=finished, **options))
    assert len(finished) == len(whole) * 3 / 2
    for row in whole:
        mine = [scores for unit, scores in finished.items() if (unit.layer, unit.probe) == (row.layer, row.probe)]
        assert row.accuracy == chosen(mine).accuracy
    part = {unit: scores for unit, scores in finished.items() if unit.layer != "1" and unit != Unit("2", "short", 1e-2)}
    asked: list[Sequence[str]] = []

    class Watched(ModelFeatures):
        def only(self, layers: Sequence[str]) -> ModelFeatures:
            asked.append(layers)
            return super().only(layers)

    assert list(sweep(Watched(model), train, test, 3, probes, finished=part, **options)) == whole
    assert part == finished and asked == 2 * [["1", "2"]]
    assert list(sweep(Watched(model), train, test, 3, probes, finished=part, **options)) == whole
    assert len(asked) == 2
