"""The command ``genaim``: its arguments. Every command imports what it needs when it runs, so that help is instant."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from apps import options
from apps.errors import guarded
from apps.evaluate import evaluate

app = typer.Typer(
    name="genaim",
    help="Autoregressive image generation: train models, and sample images from them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(evaluate, name="evaluate")

DEFAULT_MODEL = "emoji-var"
DEFAULT_PAINTER = "emoji-mar"  # sees all that is known from the first step
DEFAULT_ENLARGER = "emoji-sr4"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 bad input, 130 interrupted, 143 terminated, 1 a bug."""
    raise SystemExit(guarded(lambda: app(arguments, prog_name="genaim", standalone_mode=False)))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        import genaim

        print(f"genaim {genaim.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def sample(
    context: typer.Context,
    model: options.Model = DEFAULT_MODEL,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES", help="Classes by name or number: 'a,b', or given again. Default: all classes in turn."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of images.")] = 16,
    seed: options.Seed = 0,
    guidance: options.Guidance = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    steps: options.Steps = None,
    diffusion_steps: options.DiffusionSteps = None,
    scheduler: options.Scheduler = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile: a slow start, for many images of one batch size.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder to write; results in it are replaced. Default: samples/MODEL-seedSEED."
        ),
    ] = None,
    from_record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Repeat the run of a record.json; takes --device, --dtype, --compile and --out only."
        ),
    ] = None,
) -> None:
    """Generate images: numbered PNG files, a contact sheet, and a record that repeats the run."""
    from dataclasses import replace

    from apps.folders import check_replaceable, read_record
    from apps.request import SampleRequest, read_request

    request = SampleRequest(
        model,
        classes=tuple(classes or ()),
        count=count,
        seed=seed,
        guidance_scale=guidance,
        guidance_schedule=guidance_schedule,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_steps=steps,
        diffusion_steps=diffusion_steps,
        scheduler=scheduler,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    record = None
    if from_record is not None:
        given = _given(context)
        if others := given - {"from_record", "device", "dtype", "compiled", "out"}:
            name = min(others)
            raise ValueError(f"--from-record takes '{name}' from the record; leave that option out.")
        record = read_record(from_record)
        elsewhere = {name: context.params[name] for name in given & {"device", "dtype"}}
        request = replace(read_request(from_record), **elsewhere)
    request.check()
    if out is not None:
        check_replaceable(out)
    from apps.sample import compared, sample  # imports torch, after all that is refused without it

    folder = sample(request, out, compiled=compiled)
    if record is not None:
        print(compared(folder, record))
    print(f"{request.count} image{'s' * (request.count != 1)}, sheet.png and record.json in {folder}")
    print(folder / "sheet.png")


@app.command()
def inpaint(
    context: typer.Context,
    image: options.Picture,
    mask: options.MaskFile = None,
    box: options.Box = None,
    label: options.OneClass = None,
    model: options.Model = DEFAULT_PAINTER,
    count: options.Results = 4,
    seed: options.Seed = 0,
    guidance: options.Guidance = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    steps: options.Steps = None,
    diffusion_steps: options.DiffusionSteps = None,
    scheduler: options.Scheduler = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    out: options.Out = None,
) -> None:
    """Paint the masked part of a picture anew, several times; every other pixel stays as it is."""
    _paint(context, "inpaint")


@app.command()
def outpaint(
    context: typer.Context,
    image: options.Picture,
    left: Annotated[int, typer.Option(help="Pixels to add on the left.", min=0)] = 0,
    top: Annotated[int, typer.Option(help="Pixels to add at the top.", min=0)] = 0,
    right: Annotated[int, typer.Option(help="Pixels to add on the right.", min=0)] = 0,
    bottom: Annotated[int, typer.Option(help="Pixels to add at the bottom.", min=0)] = 0,
    label: options.OneClass = None,
    model: options.Model = DEFAULT_PAINTER,
    count: options.Results = 4,
    seed: options.Seed = 0,
    guidance: options.Guidance = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    steps: options.Steps = None,
    diffusion_steps: options.DiffusionSteps = None,
    scheduler: options.Scheduler = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    out: options.Out = None,
) -> None:
    """Continue a picture beyond its sides."""
    _paint(context, "outpaint")


@app.command()
def edit(
    context: typer.Context,
    image: options.Picture,
    label: Annotated[str, typer.Option("--class", metavar="NAME", help="The new class, by name or number.")],
    mask: options.MaskFile = None,
    box: options.Box = None,
    strength: Annotated[
        float, typer.Option(help="1 paints anew; below, a sketch of the picture is kept; 0 keeps all.", min=0, max=1)
    ] = 0.5,
    model: options.Model = DEFAULT_MODEL,
    count: options.Results = 4,
    seed: options.Seed = 0,
    guidance: options.Guidance = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    steps: options.Steps = None,
    diffusion_steps: options.DiffusionSteps = None,
    scheduler: options.Scheduler = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    out: options.Out = None,
) -> None:
    """Turn a picture, or the masked part of it, into another class."""
    _paint(context, "edit")


@app.command()
def upscale(
    context: typer.Context,
    image: options.Picture,
    factor: Annotated[
        int | None, typer.Option(help="How many times larger. Default: the model's; 4 with scales.", min=2)
    ] = None,
    label: options.OneClass = None,
    consistent: Annotated[bool, typer.Option(help="Make the result give the picture again when it is reduced.")] = True,
    model: options.Model = DEFAULT_ENLARGER,
    count: options.Results = 1,
    seed: options.Seed = 0,
    guidance: options.Guidance = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    steps: options.Steps = None,
    diffusion_steps: options.DiffusionSteps = None,
    scheduler: options.Scheduler = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    out: options.Out = None,
) -> None:
    """Enlarge a picture, in tiles where it is larger than the model's field."""
    _paint(context, "upscale")


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="Recipe by name or file. Without it: a list of recipes.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes of the recipe, such as optimizer.lr=1e-4."),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Show every key, its value and its meaning, and stop.")] = False,
) -> None:
    """Train a tokenizer, a generator or an encoder from images. The same command again continues where it stopped."""
    if keys:
        from apps.describe import show_keys

        show_keys(recipe, overrides or ())
    elif recipe is None:
        from apps.describe import show_recipes

        show_recipes()
    else:
        from genaim.config import find_recipe

        find_recipe(recipe)  # before torch is imported
        from apps.train import train

        train(recipe, overrides or ())


@app.command()
def scaling(
    recipe: Annotated[str, typer.Argument(help="Recipe of a generator by name or file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes of the recipe, such as optimizer.schedule=constant."),
    ] = None,
    *,
    sizes: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Sizes: w64d4 (width 64, 4 blocks), w64d4h2 (2 heads), or presets; 'a,b'."),
    ],
    data: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Training images: shares up to 1, or numbers: '1/16,1/4,1'.")
    ] = "1",
    budget: Annotated[int, typer.Option(metavar="STEPS", help="Training steps of every point.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the study. Default: runs/NAME-scaling.")
    ] = None,
) -> None:
    """Train a recipe at several sizes and data sizes, and fit scaling laws. The same command again continues."""
    from apps.scaling import ScalingRequest, scaling

    listed, numbers = (tuple(part.strip() for part in text.split(",") if part.strip()) for text in (sizes, data))
    folder = scaling(ScalingRequest(recipe, tuple(overrides or ()), listed, numbers, budget, out))
    print(f"results.md, results.json and scaling.png in {folder}")
    print(folder / "scaling.png")


@app.command()
def models() -> None:
    """List the bundled and official models, and the recipes that train models."""
    from apps.describe import show_models, show_official, show_recipes

    show_models()
    show_official()
    show_recipes()


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Bundled or official model, model folder or run folder.")],
) -> None:
    """Show what a model is made of: sizes, classes, tokenizer, sampling defaults, config."""
    from genaim.pretrained.names import locate

    locate(model)  # before torch is imported
    from apps.describe import show_info

    show_info(model)


@app.command()
def convert(
    family: Annotated[
        str, typer.Argument(metavar="FAMILY|NAME", help="Family of the file, such as var, or official name: var-d16.")
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Official file, .pth or .safetensors.", exists=True)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER|FILE",
            help="Tokenizer to put beside a generator. Default: the official one, by reference.",
        ),
    ] = None,
) -> None:
    """Convert an official checkpoint to a model folder. Nothing in the file is executed."""
    from apps.convert import convert

    convert(family, files, out, tokenizer)


@app.command()
def bench(
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="start: processes alone; cpu or gpu: published models too, minutes; growth: their time and memory "
            "against size; tiny: a small table.",
        ),
    ] = "start",
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="Model that processes sample.")] = DEFAULT_MODEL,
    repeats: Annotated[int, typer.Option(help="Runs of each process; the fastest counts.", min=1)] = 3,
    device: options.Device = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Also with torch.compile, after its warm-up.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures to this file.")] = None,
) -> None:
    """Time start-up, sampling and training on this machine, beside a plain implementation and the machine's limits."""
    from apps.bench import bench

    bench(preset, model=model, repeats=repeats, device=device, compiled=compiled, report=json)


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FOLDER", help="Model to offer; give it again for more. Default: all bundled."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port to listen at. Default: a free one from 7860 on.", min=1, max=65535)
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Open the web demo: generate, inpaint, outpaint and enlarge pictures in a browser."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError("the web demo needs Gradio, which is not installed; run: pip install 'genaim[demo]'")
    from apps.request import check_address
    from genaim.pretrained.names import locate

    for name in model or ():
        locate(name, "generator")
    check_address(host, port)
    from apps.demo import serve  # imports torch, after all that is refused without it

    serve(model or (), host, port, device)


def _paint(context: typer.Context, task: str) -> None:
    """Runs a command that changes a picture; its parameters are the fields of a request."""
    from apps.folders import check_replaceable
    from apps.request import PaintRequest, SampleRequest

    given = dict(context.params)
    renamed = {"guidance": "guidance_scale", "steps": "num_steps"}
    common = {f.name for f in dataclasses.fields(SampleRequest)} - {"classes", "weights"}
    sampling = {name: given.pop(name) for name in list(given) if renamed.get(name, name) in common}
    out = given.pop("out")
    request = PaintRequest(
        task,
        given.pop("image"),
        SampleRequest(**{renamed.get(name, name): value for name, value in sampling.items()}),
        **given,
    )
    request.check()
    if out is not None:
        check_replaceable(out)
    from apps.paint import paint  # imports torch, after all that is refused without it

    folder = paint(request, out)
    print(
        f"{request.sampling.count} result{'s' * (request.sampling.count != 1)}, sheet.png and record.json in {folder}"
    )
    print(folder / "sheet.png")


def _given(context: typer.Context) -> set[str]:
    """Names of the options on the command line."""
    source: Any = context.get_parameter_source
    return {name for name in context.params if getattr(source(name), "name", "") == "COMMANDLINE"}


if __name__ == "__main__":
    main()
