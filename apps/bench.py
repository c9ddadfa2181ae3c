"""`genaim bench`: how fast this machine starts, samples and trains, and how far that is from its limits."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from apps.bench_cases import PRESETS
from apps.bench_machine import ceilings, describe
from apps.bench_rows import Row, measure
from apps.folders import make_parent, write_json
from apps.progress import make_progress
from apps.tables import markdown_table
from genaim.config import nearest
from genaim.core.hardware import pick_device
from genaim.core.progress import Progress
from genaim.pretrained.names import locate

COUNT = 16
START = "start"
WIDTH = 140  # of the table, in characters
TARGETS = {"help": 0.5, "sample, process": 15.0, "sample, model": 4.0}  # seconds, on 2 CPU cores


def bench(preset: str, *, model: str, repeats: int, device: str, compiled: bool, report: Path | None) -> None:
    """Measures, prints a table, and writes the figures to ``report``.

    Args:
        preset: ``start`` for processes of the command line alone, or a name in `PRESETS`, which measures these too.
        model: What is sampled by processes.
        repeats: Runs of each process; the fastest counts, since a slower one tells of the rest of the machine.
        device: Where the rest is measured.
        compiled: Whether compiled sampling is measured too.
        report: JSON file, or None.

    Raises:
        ValueError: If there is no such preset or model, nothing to compile, or a command fails.
    """
    if preset not in (START, *PRESETS):
        raise ValueError(f"unknown preset '{preset}'; {nearest(preset, (START, *PRESETS))}.")
    if compiled and preset == START:
        raise ValueError(f"--compile needs a --preset that samples published models: {', '.join(PRESETS)}.")
    locate(model, "generator")
    where = pick_device(device)
    if preset == "gpu" and where.type == "cpu":
        raise ValueError("--preset gpu is for a GPU, and there is none here; take --preset cpu, or tiny.")
    if report is not None:
        make_parent(report)  # last, or what is refused would leave a folder
    progress, began = make_progress(sys.stderr), time.perf_counter()
    progress.say(f"start-up and {COUNT} images of {model}, {repeats} times")
    starts = start_up(model, repeats)
    limits: dict[str, float] = {}
    rows: list[Row] = []
    machine = describe(where)
    try:
        if preset != START:
            progress.say("ceilings of the machine")
            limits = ceilings(where)
            for number, case in enumerate(PRESETS[preset], 1):
                say = partial(_say, progress, f"{number} of {len(PRESETS[preset])}: ")
                for row in measure(case, where, compiled, say):
                    rows.append(row)
    finally:  # an interruption shows what has been measured
        print_tables(starts, limits, rows, machine)
    print(f"\nmeasured in {(time.perf_counter() - began) / 60:.1f} minutes")
    if report is not None:
        figures = {
            "preset": preset,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine,
            "model": model,
            "seconds": starts,
            "ceilings": limits,
            "rows": [asdict(row) for row in rows],
        }
        write_json(report, figures)


def _say(progress: Progress, before: str, text: str) -> None:
    progress.say(before + text)


def start_up(model: str, repeats: int) -> dict[str, float]:
    """Wall times of fresh processes in seconds."""
    runs = [sample_once(model) for _ in range(repeats)]
    return {
        "help": min(timed_process(["--help"]) for _ in range(repeats)),
        "sample, process": min(run["process"] for run in runs),
        "sample, model": min(run["seconds"]["sample"] for run in runs),
    }


def timed_process(arguments: Sequence[str]) -> float:
    """Wall time of one ``genaim`` process in seconds.

    Raises:
        ValueError: If it fails.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "apps.cli", *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ValueError(f"genaim {' '.join(arguments)} failed: {done.stderr.strip().removeprefix('error: ')}")
    return seconds


def sample_once(model: str) -> dict[str, Any]:
    """The record of one sampling, with the wall time of its ``process``."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        seconds = timed_process(["sample", "--model", model, "-n", str(COUNT), "--out", str(out)])
        record: dict[str, Any] = json.loads((out / "record.json").read_text())
    return {**record, "process": seconds}


# Display


def print_tables(
    starts: dict[str, float], limits: dict[str, float], rows: Sequence[Row], machine: dict[str, Any]
) -> None:
    """Shows what was measured: tables on a terminal, Markdown in a file."""
    instructions = ", ".join(machine["instructions"]) or "none that matter"
    print(
        f"{machine['processor']}, {machine['threads']} threads ({instructions}), Python {machine['python']}, PyTorch "
        f"{machine['torch']}, {datetime.now(UTC).date()}\n"
    )
    print_table(
        ("process", "seconds", "target"),
        [(name, f"{seconds:.2f}", f"{TARGETS[name]:.1f}") for name, seconds in starts.items()],
    )
    if not rows:
        return
    single, half, copy = (limits[name] / 1e9 for name in ("float32", "bfloat16", "copy"))
    print(f"\nceilings: matrix product {single:.0f} GFLOP/s in float32, {half:.0f} in bfloat16; copy {copy:.0f} GB/s\n")
    headings = ("what", "how", "images", "seconds", "images/s", "GFLOP/s", "of ceiling", "x plain", "GB", "note")
    print_table(headings, [cells(row, limits) for row in rows])


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for eyes on a terminal, else Markdown."""
    console = Console()
    if not console.is_terminal:
        print("\n".join(markdown_table(headings, rows)))
        return
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    console.width = max(console.width, WIDTH)  # a narrow table cannot be read
    console.print(table)


def cells(row: Row, limits: dict[str, float]) -> list[str]:
    """A row of the table."""
    rate = row.flops / row.seconds
    return [
        row.what,
        row.how,
        str(row.batch),
        f"{row.seconds:.3g}",
        f"{row.batch / row.seconds:.3g}",
        f"{rate / 1e9:.0f}" if rate else "",
        f"{rate / limits[row.dtype]:.0%}" if rate else "",
        f"{row.speedup:.2f}" if row.speedup else "",
        f"{row.memory / 1e9:.1f}" if row.memory else "",
        row.note,
    ]
