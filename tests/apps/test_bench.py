"""`genaim bench` measures real processes."""

import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_bench_prints_and_writes_figures(genaim, model, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    done = genaim("bench", "--model", model, "--repeats", 1, "--json", "figures.json")
    assert done.code == 0, done.err
    figures = json.loads(Path("figures.json").read_text())
    assert 0 < figures["seconds"]["help"] < figures["seconds"]["sample, process"]
    assert figures["settings"]["count"] == 16
    assert "sample, model" in done.out
