"""The commands ``genaim evaluate ...``: their arguments. Each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from apps import options

evaluate = typer.Typer(
    help="Measure models: how likely they make images, and what their features know.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

AModel = Annotated[str, typer.Argument(metavar="MODEL", help="Bundled or official model, model folder or run folder.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="RECIPE|PATH|{YAML}",
        help="Images: of a recipe, a data set by path, '{path: photos, split: val}' or '{train: ..., val: ...}'. "
        "Default: of the model's recipe.",
    ),
]
Limit = Annotated[int | None, typer.Option("--count", "-n", help="Only the first n images.", min=1)]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write a record to this file.")]


@evaluate.command()
def likelihood(
    model: AModel,
    data: Data = None,
    split: Annotated[
        Literal["val", "train"], typer.Option(help="val: the held-out images of a recipe, or the split test of PATH.")
    ] = "val",
    count: Limit = None,
    classes: Annotated[bool, typer.Option(help="Tell the model the class of every image.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn: latents of a posterior, random paths.")] = 0,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    json: JsonFile = None,
) -> None:
    """Score images under a model with an exact density: nats per token, and bits per dimension of pixels."""
    from apps.likelihood import LikelihoodRequest, score

    score(LikelihoodRequest(model, data, split, count, classes, seed, batch_size, device), json)
