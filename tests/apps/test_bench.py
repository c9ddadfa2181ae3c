"""`genaim bench` measures real processes and models."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from apps import bench_rows
from apps.bench_cases import PLAIN, Coding, Training
from apps.bench_rows import Row, compared, measure
from tests.apps.conftest import Genaim


@pytest.fixture(autouse=True)
def _processes_find_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))


@pytest.mark.slow
def test_the_tiny_preset_measures_everything(genaim: Genaim, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rows, "in_own_process", lambda work, *arguments: work(*arguments))
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
    assert "1 of 4: VAR-tiny: plain float32" in done.err


@pytest.mark.slow
def test_each_way_has_a_process_and_is_compared_with_the_plain_one() -> None:
    told: list[str] = []
    rows = list(measure(Coding("tiny"), torch.device("cpu"), False, told.append))
    assert told[:2] == [f"tokenizer, 256 px: {PLAIN}", "tokenizer, 256 px: float32"]
    assert [(row.what.split()[-1], row.how) for row in rows[:4]] == [
        ("encode", PLAIN),
        ("decode", PLAIN),
        ("encode", "float32"),
        ("decode", "float32"),
    ]
    assert [row.speedup for row in rows[:4]] == [pytest.approx(rows[i % 2].seconds / rows[i].seconds) for i in range(4)]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killed(Training):
    """A case whose process is killed when it receives it."""

    def __reduce__(self) -> tuple[object, ...]:
        return _die, ()


def test_a_way_whose_process_is_killed_is_left_out() -> None:
    told: list[str] = []
    assert list(measure(Killed("tiny", batch=1), torch.device("cpu"), False, told.append)) == []
    assert told[0] == f"VAR-tiny, training step: {PLAIN}"
    assert told[1] == f"{told[0]} is left out: its process was killed, perhaps for want of memory"


def test_speed_is_compared_by_images_a_second() -> None:
    plain, row = Row("x", PLAIN, batch=1, seconds=6.0), Row("x", "float32", batch=4, seconds=8.0)
    assert compared(row, plain).speedup == 3.0
    assert compared(row, None).speedup is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--compile",), "--compile needs a --preset that samples published models: cpu, gpu, growth, tiny."),
        (
            ("--preset", "gpu", "--device", "cpu"),
            "--preset gpu is for a GPU, and there is none here; take --preset cpu",
        ),
        (("--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(
    genaim: Genaim, arguments: tuple[str, ...], told: str
) -> None:
    done = genaim("bench", *arguments, "--json", "new/deep/figures.json")
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: {told}") and done.err.count("\n") == 1
    assert not Path("new").exists()


def test_figures_are_written_to_a_file(genaim: Genaim) -> None:
    assert genaim("bench", "--json", ".").err == "error: '.' is a folder; give the name of a file.\n"


def test_presets_are_named(genaim: Genaim) -> None:
    done = genaim("bench", "--preset", "gpuu")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: unknown preset 'gpuu'; did you mean 'gpu'? Allowed: start, cpu, gpu, growth, tiny.\n"
