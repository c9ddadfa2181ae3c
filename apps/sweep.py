"""`genaim evaluate sweep`: figures over a grid of sampling settings, with the best one marked."""

import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.folders import write_json, write_text
from apps.plots import need_matplotlib, new_figure, write_figure
from apps.progress import make_progress
from apps.quality import evaluate_quality
from apps.quality_record import HEADINGS, SCALES, figure_in_words, reference_in_words
from apps.quality_request import QualityRequest
from apps.tables import markdown_table
from genaim.evaluation.quality import PROTOCOLS

AXES = {"guidance": "guidance_scale", "temperature": "temperature", "steps": "num_steps"}
LOWER_IS_BETTER = ("fid", "kid")
ERRORS = {
    "fid": "standard error",
    "kid": "standard deviation over subsets",
    "inception_score": "standard deviation over splits",
}
FORMAT = "genaim sweep 2"


def sweep(
    request: QualityRequest,
    grid: Mapping[str, Sequence[float]],
    best_by: str,
    out: Path,
    *,
    cache: Path,
    command: Sequence[str],
) -> None:
    """Measures every point of a grid, then writes a table, a plot, and what is in them as JSON.

    Every point is an evaluation with a folder and a record of its own. Features that are kept are not computed again,
    so that an interrupted sweep goes on; the figures are.

    Args:
        request: What all points have in common.
        grid: Values of some of `AXES`.
        best_by: Figure that decides, in `HEADINGS`.
        out: Folder to write.
        cache: Where features are kept.
        command: The command line that repeats this.

    Raises:
        ValueError: If the grid is empty, a point does not fit the model, or the deciding figure is not measured.
        Stopped: After an interruption, with what is done kept.
    """
    check(grid, best_by)
    request.check()
    if best_by == "kid" and not PROTOCOLS[request.preset].kid:
        raise ValueError(f"--best-by kid: the preset {request.preset} has no KID; choose another figure.")
    need_matplotlib()
    assert request.sampling is not None
    progress = make_progress()  # of several processes the first one speaks
    points: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        progress.say(in_words(settings))
        chosen: dict[str, Any] = {
            AXES[name]: int(value) if name == "steps" else value for name, value in settings.items()
        }
        point = replace(request, sampling=replace(request.sampling, **chosen))
        folder = out / "-".join(f"{name}{value:g}" for name, value in settings.items())
        record = evaluate_quality(point, folder, cache=cache, command=command)
        if record is None:  # in another process than the first
            continue
        records.append(record)
        figures = record["figures"][0]["figures"]  # against the first reference
        if best_by not in figures:
            raise ValueError(f"--best-by {best_by} is not among the figures of this measurement: {', '.join(figures)}.")
        points.append({"settings": settings, "folder": folder.name, "figures": figures})
    if not points:
        return
    best = choose(points, best_by)
    lines = in_markdown(points, best, best_by)
    print("\n".join(lines))
    text = "\n".join(["# Sweep", "", f"    {shlex.join(command)}", "", *lines, "", *circumstances(records[0])]) + "\n"
    content = {"format": FORMAT, "command": shlex.join(command), "best_by": best_by, "best": best, "points": points}
    write_json(out / "sweep.json", content)
    write_text(out / "sweep.md", text)
    draw(points, best, best_by, out / "sweep.png")
    print(f"written: {out / 'sweep.md'}, sweep.json and sweep.png")


def read_grid(given: Mapping[str, Sequence[str] | None]) -> dict[str, list[float]]:
    """The numbers of each axis that is given, as ``1,2`` or again and again.

    Raises:
        ValueError: If there is something else among them.
    """
    grid = {}
    for name, texts in given.items():
        if texts is None:
            continue
        try:
            grid[name] = [float(part) for text in texts for part in text.split(",") if part.strip()]
        except ValueError:
            raise ValueError(f"--{name} is '{','.join(texts)}'; give numbers, such as 1,2,4.") from None
    return grid


def check(grid: Mapping[str, Sequence[float]], best_by: str) -> None:
    """Raises ValueError if there is nothing to try, a number that cannot be one of a grid, or no such figure."""
    if not grid or any(not values for values in grid.values()):
        raise ValueError("there is nothing to sweep; give values, such as --guidance 1,2,4 or --temperature 0.8,1.")
    for name, values in grid.items():
        written = [f"{value:g}" for value in values]
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"--{name} is {','.join(written)}; give finite numbers.")
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} has a value twice; give each once.")
        if (twice := next((text for text in written if written.count(text) > 1), None)) is not None:
            raise ValueError(
                f"--{name} has two values that folders and tables write as {twice}; give values that differ in six "
                "digits."
            )
        if name == "steps" and any(value != int(value) or value < 1 for value in values):
            raise ValueError(f"--steps is {','.join(written)}; give whole numbers from 1 on.")
        if name == "temperature" and min(values) < 0:
            raise ValueError(f"--temperature has {min(values):g}; it must be 0 or more.")
    if best_by not in HEADINGS:
        raise ValueError(f"--best-by is '{best_by}'; choose from {', '.join(HEADINGS)}.")


def in_words(settings: Mapping[str, float]) -> str:
    """Such as ``guidance 1.5, temperature 1``."""
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def choose(points: Sequence[dict[str, Any]], best_by: str) -> int:
    """Number of the best point; the first of equal ones."""
    sign = 1 if best_by in LOWER_IS_BETTER else -1
    return min(range(len(points)), key=lambda i: sign * points[i]["figures"][best_by]["value"])


def in_markdown(points: Sequence[dict[str, Any]], best: int, best_by: str) -> list[str]:
    """The lines of a table with the best row in bold."""
    axes, figures = list(points[0]["settings"]), list(points[0]["figures"])
    rows = []
    for i, point in enumerate(points):
        cells = [f"{value:g}" for value in point["settings"].values()]
        cells += [figure_in_words(name, point["figures"][name]) for name in figures]
        rows.append([f"**{cell}**" if i == best else cell for cell in cells])
    lines = markdown_table([*axes, *(HEADINGS[name] for name in figures)], rows)
    return [*lines, "", f"Best by {HEADINGS[best_by]}: bold."]


def circumstances(record: Mapping[str, Any]) -> list[str]:
    """What all points have in common, as lines of Markdown, from the record of one of them."""
    row, extractor = record["figures"][0], record["extractor"]
    others = len({figures["reference"] for figures in record["figures"]}) > 1
    lines = [
        f"- model: {row['images']}, weights {record['weights']}; {row['images_count']:,} images of each point",
        f"- reference: {reference_in_words(row)}" + ("; those of the others are in the records" if others else ""),
        f"- features: {extractor['name']}, weights {extractor['weights']}",
        f"- guidance schedule: {record['settings']['guidance_schedule']}",
    ]
    errors = [
        f"{HEADINGS[name]}, {ERRORS[name]}" for name, found in row["figures"].items() if found["error"] is not None
    ]
    lines += [f"- errors: {'; '.join(errors)}"] if errors else []
    return [*lines, "- every point has a folder with its record, which `genaim evaluate replay` repeats"]


def draw(points: Sequence[dict[str, Any]], best: int, best_by: str, path: Path) -> None:
    """Plots the deciding figure against the first axis, a line for each setting of the others."""
    first, *others = points[0]["settings"]
    figure = new_figure(6, 4)
    axes = figure.subplots()
    lines: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        lines.setdefault(in_words({name: point["settings"][name] for name in others}), []).append(point)
    scale = SCALES.get(best_by, 1.0)
    for label, line in lines.items():
        x = [point["settings"][first] for point in line]
        y = [point["figures"][best_by]["value"] * scale for point in line]
        errors = [point["figures"][best_by]["error"] for point in line]
        bars = None if None in errors else [error * scale for error in errors]
        axes.errorbar(x, y, bars, marker="o", markersize=4, capsize=2, linewidth=1, label=label or None)
    star = points[best]
    axes.plot(
        star["settings"][first],
        star["figures"][best_by]["value"] * scale,
        "*",
        color="black",
        markersize=14,
        label="best",
    )
    axes.set(xlabel=first, ylabel=HEADINGS[best_by])
    axes.legend(frameon=False)
    write_figure(figure, path)
