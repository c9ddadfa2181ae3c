"""What probes found, for a reader: tables in Markdown, and a plot by layer; the best layer is marked in both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apps.plots import need_matplotlib, new_figure, write_figure
from apps.tables import markdown_table

FORMATS = (".png", ".svg", ".pdf")


class Row(NamedTuple):
    """One figure."""

    features: str
    """Whose features."""
    layer: str
    """Which of them."""
    probe: str
    """Protocol."""
    accuracy: float
    """Share of the test images whose class the probe said."""
    standard_error: float
    """Of the accuracy."""


def best(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """The best layer of all features and probes, the first of equal ones."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.features, row.probe)
        if key not in found or row.accuracy > found[key].accuracy:
            found[key] = row
    return found


def tables(rows: Sequence[Row]) -> str:
    """Accuracies in Markdown: of the best layers, and of all of them where there are several."""
    names, probes = (list(dict.fromkeys(values)) for values in zip(*((r.features, r.probe) for r in rows), strict=True))
    winners, accuracy = best(rows), {(row.features, row.layer, row.probe): row for row in rows}
    layers = {name: list(dict.fromkeys(row.layer for row in rows if row.features == name)) for name in names}
    summary = []
    for name in names:
        cells = [name]
        for probe in probes:
            row = winners.get((name, probe))
            where = f" ({row.layer})" if row and len(layers[name]) > 1 else ""
            cells.append(f"{row.accuracy:.2%}{where}" if row else "-")
        summary.append(cells)
    lines = markdown_table(["features, best layer", *probes], summary)
    errors = [row.standard_error for row in winners.values()]
    lines.append(f"\nStandard errors are {min(errors):.2%} to {max(errors):.2%}.")
    if all(len(found) == 1 for found in layers.values()):
        return "\n".join(lines)
    lines[-1] += " The best layer is the best on the test images."
    every = []
    for name in names:
        for layer in layers[name]:
            cells = [name, layer]
            for probe in probes:
                row = accuracy.get((name, layer, probe))
                mark = "**" if row and row is winners[name, probe] and len(layers[name]) > 1 else ""
                cells.append(f"{mark}{row.accuracy:.2%}{mark}" if row else "-")
            every.append(cells)
    return "\n".join([*lines, "", *markdown_table(["features", "layer", *probes], every)])


def check_plot(file: Path | None) -> None:
    """Raises ValueError if a plot is asked for that cannot be drawn."""
    if file is None:
        return
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot is '{file}'; it must end in {', '.join(FORMATS)}.")
    need_matplotlib()


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draws accuracy by layer, a panel for each probe; features of one layer are a horizontal line."""
    names, probes = (list(dict.fromkeys(values)) for values in zip(*((r.features, r.probe) for r in rows), strict=True))
    layers = sorted(dict.fromkeys(row.layer for row in rows if several(rows, row)), key=_place)
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    figure = new_figure(4.2 * len(probes), 3.8)
    panels: Any = figure.subplots(1, len(probes), squeeze=False)[0]
    for probe, panel in zip(probes, panels, strict=True):
        for name in names:
            mine = [row for row in rows if (row.features, row.probe) == (name, probe)]
            style = {"color": colors[name], "label": name}
            if len(mine) == 1:
                panel.axhline(100 * mine[0].accuracy, linestyle="--", **style)
            elif mine:
                mine.sort(key=lambda row: layers.index(row.layer))
                at = [layers.index(row.layer) for row in mine]
                panel.plot(at, [100 * row.accuracy for row in mine], marker="o", markersize=3, **style)
                winner = max(mine, key=lambda row: row.accuracy)
                where = layers.index(winner.layer)
                panel.plot(where, 100 * winner.accuracy, marker="*", markersize=12, color=colors[name])
        panel.set_xticks(range(len(layers)), layers, rotation=45 if max(map(len, layers), default=0) > 4 else 0)
        panel.set(title=probe, xlabel="layer (star: the best)", ylabel="accuracy on test images, %")
        panel.grid(alpha=0.3)
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines() if line.get_label() in names}
    figure.legend(lines.values(), lines, loc="outside upper center", ncols=min(len(names), 6))
    write_figure(figure, file)


def several(rows: Sequence[Row], row: Row) -> bool:
    """Whether there are other layers of the same features and probe."""
    return any(r != row and (r.features, r.probe) == (row.features, row.probe) for r in rows)


def _place(layer: str) -> tuple[int, int, str]:
    """Blocks in order, then the norm, then means."""
    return (0, int(layer), "") if layer.isdigit() else (1 if layer == "norm" else 2, 0, layer)
