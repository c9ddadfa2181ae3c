"""A sweep probes every layer with every protocol, whatever fits in memory."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from genaim.core.progress import SilentProgress
from genaim.data import Batch
from genaim.evaluation import features
from genaim.evaluation.features import ModelFeatures, extract
from genaim.evaluation.probe_protocols import PROTOCOLS
from genaim.evaluation.probe_sweep import LabelledImages, sweep
from genaim.evaluation.probes import probe_accuracy
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
    assert one["knn"].accuracy == probe_accuracy(PROBES["knn"], *pooled, 3)
    assert one["short"].accuracy == probe_accuracy(PROBES["short"], *patches, 3, num_heads=2)
    share = one["knn"].accuracy
    assert one["knn"].standard_error == pytest.approx((share * (1 - share) / 20) ** 0.5)
    monkeypatch.setattr(features, "PATCH_BYTES", 1)  # one layer at a time
    assert list(sweep(source, train, test, 3, PROBES, name="aim", progress=SilentProgress())) == found
