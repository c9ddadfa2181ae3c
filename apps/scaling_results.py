"""What a scaling study found, as a page and as a plot; Matplotlib is imported when it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.plots import new_figure, write_figure
from apps.tables import markdown_table
from genaim.core.progress import duration
from genaim.evaluation.study import Series, StudyPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {
    "steps": "training steps",
    "parameters": "parameters of the transformer",
    "data": "different training images",
    "compute": "training operations (FLOPs)",
}
POINT_COLUMNS = (
    "size",
    "images",
    "parameters",
    "with embeddings and head",
    "FLOPs/step",
    "lowest loss",
    "at step",
    "last loss",
    "time",
)
FIT_COLUMNS = ("loss against", "of", "points", "alpha", "A", "E", "R2")
NOTES = """\
The loss of a point is its lowest validation loss. Fits are `L = E + A x^-alpha`, least squares in the loss; E is
fitted to four points or more, and else, or where the best E is not above 0, held at 0. In brackets: the 95% profile
interval of alpha, `...` where the points do not bound it. Points of one training run are not independent, so that the
intervals of steps and compute are too narrow. Parameters are those of the transformer, without embeddings, positions
and head; compute is three times the operations of a forward pass with attention, times the images seen.
"""


def as_markdown(record: Mapping[str, Any]) -> str:
    """The page of results.json."""
    machines = "; ".join(
        f"{m['name'] or m['device']}, processes {m['processes']}, threads {m['threads']}, autocast {m['autocast']}"
        for m in record["machines"]
    )
    points = [
        (
            p["size"],
            str(p["images"]),
            f"{p['transformer_parameters']:,}",
            f"{p['parameters']:,}",
            f"{p['flops_per_step']:.3g}",
            f"{p['lowest']:.4f}",
            str(p["lowest_step"]),
            f"{p['losses'][-1]:.4f}",
            duration(p["seconds"]),
        )
        for p in record["points"]
    ]
    return "\n".join(
        [
            "# Scaling study\n",
            f"```\n{record['command']}\n```\n",
            f"{record['budget_steps']} steps of {record['batch_size']} images each, of which {record['warmup_steps']} "
            f"warm-up, seed {record['seed']}; on {machines}. Losses in {record['loss_unit']}.\n",
            *markdown_table(POINT_COLUMNS, points),
            "",
            NOTES,
            *markdown_table(FIT_COLUMNS, map(fit_row, record["fits"])),
            "",
        ]
    )


def fit_row(fit: Mapping[str, Any]) -> tuple[str, ...]:
    """A fit in the columns of its table."""
    if "problem" in fit:
        return fit["against"], fit["of"], str(len(fit["x"])), fit["problem"], "", "", ""
    return (
        fit["against"],
        fit["of"],
        str(fit["num_points"]),
        exponent_text(fit["exponent"], fit["interval"]),
        f"{fit['scale']:.4g}",
        f"{fit['offset']:.4g}" if fit["offset_is_free"] else "0 (held)",
        "exact" if fit["r2"] is None else f"{fit['r2']:.4f}",
    )


def exponent_text(exponent: float, interval: Sequence[float | None]) -> str:
    """``0.081 (0.062 to 0.101)``."""
    low, high = ("..." if end is None else f"{end:.3f}" for end in interval)
    return f"{exponent:.3f} ({low} to {high})"


def draw(points: Sequence[StudyPoint], series: Sequence[Series], path: Path) -> None:
    """Draws the losses against steps, parameters, data and compute, each with its laws.

    Solid lines are measured, dashed ones fitted. The curves of steps and compute are those with the most images;
    dotted, against steps, those with the fewest.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    sizes = list(dict.fromkeys(p.size for p in points))
    counts = sorted({p.images for p in points})
    colors = {s: colormaps["viridis"](0.9 * i / max(len(sizes) - 1, 1)) for i, s in enumerate(sizes)}
    colors |= {f"{n} images": colormaps["plasma"](0.85 * i / max(len(counts) - 1, 1)) for i, n in enumerate(counts)}
    figure = new_figure(9, 6.8)
    panels: dict[str, Axes] = dict(zip(AXES, figure.subplots(2, 2, sharey=True).flat, strict=True))
    for p in points:
        draw_curves(panels, p, colors[p.size], p.images == counts[-1], p.images == counts[0])
    for s in series:
        color = colors.get(s.of, "black")
        if s.against in ("parameters", "data"):
            panels[s.against].plot(s.x, s.loss, "o", color=color, markersize=5)
        if s.law is not None:
            x = np.geomspace(min(s.x), max(s.x), 100)
            panels[s.against].plot(x, s.law(x), "--", color=color, linewidth=1.2)
    for name, panel in panels.items():
        label_panel(panel, name, points[0].loss_unit, [s for s in series if s.against == name])
    show_losses(panels["steps"], series)
    mark_values(panels["steps"], [points[0].steps[0] * 2**i for i in range(20)])
    mark_values(panels["data"], counts)
    shown = [Line2D([], [], color=colors[s], label=s) for s in sizes]
    shown += [
        Line2D([], [], color=colors[f"{n} images"], marker="o", linestyle="", label=f"{n} images") for n in counts
    ]
    shown += [Line2D([], [], color="grey", linestyle=":", label=f"curve with {counts[0]} images")] * (len(counts) > 1)
    shown += [Line2D([], [], color="grey", linestyle="--", label="power law")]
    figure.legend(handles=shown, loc="outside lower center", ncols=min(len(shown), 6), frameon=False)
    write_figure(figure, path)


def draw_curves(panels: Mapping[str, "Axes"], point: StudyPoint, color: Any, most: bool, fewest: bool) -> None:
    """The validation losses of a point against steps, and with the most images against compute."""
    if most:
        panels["steps"].plot(point.steps, point.losses, color=color)
        compute = [step * point.flops_per_step for step in point.steps]
        panels["compute"].plot(compute, point.losses, color=color)
    elif fewest:
        panels["steps"].plot(point.steps, point.losses, ":", color=color)


def label_panel(panel: "Axes", name: str, unit: str, series: Sequence[Series]) -> None:
    """Axes, and in the title the range of the fitted exponents."""
    panel.set_xscale("log")
    panel.set_xlabel(AXES[name])
    panel.set_ylabel(f"validation loss ({unit})")
    panel.tick_params(labelleft=True)
    panel.grid(alpha=0.3, linewidth=0.5)
    laws = [s.law for s in series if s.law is not None]
    found = sorted(law.exponent for law in laws)
    text = "no fit" if not found else f"alpha {found[0]:.3f}" + (f" to {found[-1]:.3f}" if len(found) > 1 else "")
    panel.set_title(f"{name}: {text}", fontsize=10)


def show_losses(panel: "Axes", series: Sequence[Series]) -> None:
    """Makes what was fitted fill the panels, which share the axis; over-trained curves may leave the view."""
    seen = [loss for s in series for loss in (*s.loss, *(s.law(np.array(s.x)) if s.law else ()))]
    margin = 0.05 * (max(seen) - min(seen)) or 0.1
    panel.set_ylim(min(seen) - margin, max(seen) + margin)


def mark_values(panel: "Axes", values: Sequence[int]) -> None:
    """Ticks of a logarithmic axis at these of the values that are in view, in plain numbers."""
    low, high = panel.get_xlim()
    shown = [v for v in values if low <= v <= high]
    panel.set_xticks(shown, [str(v) for v in shown])
    panel.set_xticks([], minor=True)
