"""`genaim bench` measures real processes and models."""

import json
from pathlib import Path

import pytest

from apps.bench_cases import PLAIN
from tests.apps.conftest import Genaim


@pytest.fixture(autouse=True)
def _processes_find_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))


@pytest.mark.slow
def test_the_tiny_preset_measures_everything(genaim: Genaim, model: Path) -> None:
    done = genaim("bench", "--preset", "tiny", "--model", model, "--repeats", 1, "--device", "cpu", "--json", "f.json")
    assert done.code == 0, done.err
    figures = json.loads(Path("f.json").read_text())
    assert 0 < figures["seconds"]["help"] < figures["seconds"]["sample, process"]
    rows = {(row["what"], row["how"], row["batch"]): row for row in figures["rows"]}
    assert {what for what, _, _ in rows} >= {"VAR-tiny", "MAR-tiny", "VAR-tiny, training step"}
    assert all(row["seconds"] > 0 for row in rows.values())
    plain, fast, two = (rows["VAR-tiny", how, batch] for how, batch in ((PLAIN, 1), ("float32", 1), ("float32", 2)))
    assert plain["flops"] == fast["flops"] == two["flops"] / 2 > 0
    assert fast["speedup"] == pytest.approx(plain["seconds"] / fast["seconds"])
    assert fast["note"].endswith("of 680 tokens as plain")
    assert "of ceiling" in done.out and "from 2 of 4 rounds" in done.out
    assert "1 of 3: VAR-tiny: plain float32" in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--compile",), "--compile needs a --preset that samples published models: cpu, gpu, growth, tiny."),
        (
            ("--preset", "gpu", "--device", "cpu"),
            "--preset gpu is for a GPU, and there is none here; take --preset cpu",
        ),
        (("--json", "."), "'.' is a folder; give the name of a file."),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(
    genaim: Genaim, arguments: tuple[str, ...], told: str
) -> None:
    done = genaim("bench", *arguments)
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: {told}") and done.err.count("\n") == 1


def test_presets_are_named(genaim: Genaim) -> None:
    done = genaim("bench", "--preset", "gpuu")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: unknown preset 'gpuu'; did you mean 'gpu'? Allowed: start, cpu, gpu, growth, tiny.\n"
