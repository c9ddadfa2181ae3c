"""`genaim bench`: how long a person waits on this machine.

Figures are wall times of fresh processes, the fastest of several runs: a slower one tells of the rest of the machine.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from apps.folders import write_json

COUNT = 16
TARGETS = {"help": 0.5, "sample, process": 15.0, "sample, model": 4.0}  # seconds, on 2 CPU cores


def bench(model: str, repeats: int, report: Path | None) -> None:
    """Measures, prints a table, and writes the figures to ``report``.

    Raises:
        ValueError: If a command fails.
    """
    figures = {"help": min(timed(["--help"]) for _ in range(repeats))}
    runs = [sample_once(model) for _ in range(repeats)]
    record = min(runs, key=lambda run: run["process"])
    figures["sample, process"] = record["process"]
    figures["sample, model"] = min(run["seconds"]["sample"] for run in runs)
    print(f"{model}, {COUNT} images, on {record['machine']['processor']}, {os.cpu_count()} cores")
    table = Table("what", "seconds", "target")
    for name, seconds in figures.items():
        table.add_row(name, f"{seconds:.2f}", f"{TARGETS[name]:.1f}")
    Console().print(table)
    if report is not None:
        machine = {**record["machine"], "cores": os.cpu_count(), "python": platform.python_version()}
        settings = {name: record["settings"][name] for name in ("model", "weights", "count", "device", "dtype")}
        result = {"seconds": figures, "repeats": repeats, "settings": settings, "machine": machine}
        write_json(report, result)


def timed(arguments: Sequence[str]) -> float:
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
        seconds = timed(["sample", "--model", model, "-n", str(COUNT), "--out", str(out)])
        record: dict[str, Any] = json.loads((out / "record.json").read_text())
    return {**record, "process": seconds}
