"""Options of the command line that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(metavar="NAME|FOLDER", help="Bundled or official model, model folder or run folder.")
]
Seed = Annotated[int, typer.Option(help="Image i of a seed is always the same picture.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")]
GuidanceSchedule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Guidance of a step: constant, linear_in_step (rising, as published for VAR) or linear_in_share (MAR). "
        "Default: the model's.",
    ),
]
Temperature = Annotated[float | None, typer.Option(help="Below 1 prefers likely tokens. Default: the model's.")]
TopK = Annotated[int | None, typer.Option(help="Draw among the k likeliest codes; 0 is off. Default: the model's.")]
TopP = Annotated[
    float | None, typer.Option(help="Draw among the likeliest codes of this total; 1 is off. Default: the model's.")
]
Steps = Annotated[
    int | None, typer.Option(help="Steps of generation, where the order can choose (MAR). Default: the model's.")
]
DiffusionSteps = Annotated[
    int | None, typer.Option(help="Steps of a diffusion head for each token. Default: the model's.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Sampler of a diffusion head: ddim, dpmsolver++, euler, a diffusers class, or own (ancestral; Heun's "
        "for flow). Default: the model's.",
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images computed together.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(metavar="NAME", help="auto, float32 or bfloat16; auto takes the faster.")]

Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture, of any size.")]
MaskFile = Annotated[
    Path | None, typer.Option("--mask", metavar="FILE", help="Picture of the same size, white where to paint.")
]
Box = Annotated[str | None, typer.Option(metavar="X,Y,W,H", help="A rectangle to paint, in pixels from the top left.")]
OneClass = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="Class to paint, by name or number. Default: none.")
]
Results = Annotated[int, typer.Option("--count", "-n", help="Number of different results.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder to write; results in it are replaced. Default: samples/IMAGE-COMMAND-seedSEED.",
    ),
]
