"""The commands ``genaim evaluate ...``: their arguments. Each imports what it needs when it runs."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from apps import options

evaluate = typer.Typer(
    help="Measure models: the quality of what they generate, how likely they find images, what their features know.",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)


@evaluate.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


AModel = Annotated[str, typer.Argument(metavar="MODEL", help="Bundled or official model, model folder or run folder.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="RECIPE|PATH|{YAML}",
        help="Images: of a recipe, a data set by path, '{path: photos, split: val}' or '{train: ..., val: ...}'. "
        "Default: of the model's recipe.",
    ),
]
Limit = Annotated[int | None, typer.Option("--count", "-n", help="Images, evenly over the split. Default: all.", min=1)]
Cache = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Where finished parts are kept; the same command goes on there.")
]
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


@evaluate.command()
def probe(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Encoders and causal generators: bundled, official, or folders."),
    ],
    probes: Annotated[
        str, typer.Option(metavar="NAMES", help="Of knn, linear, linear-mae, attentive and finetune, with commas.")
    ] = "knn,linear,attentive",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Such as '0,3,norm,last4'; negative from the end. Default: each block, norm and mean.",
        ),
    ] = None,
    data: Data = None,
    train_images: Annotated[
        int | None, typer.Option(help="Training images, evenly over the split. Default: all.", min=2)
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(help="Images to judge on, evenly over the split. Default: all.", min=1)
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Also probe the pixels, and the models untrained.")] = True,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of trained probes. Default: the published number.", min=1)
    ] = None,
    step_images: Annotated[
        int | None, typer.Option(help="Images of a step of trained probes. Default: the published number.", min=2)
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Peak learning rates of trained probes to choose from, such as 1e-3,1e-2."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the probes and of untrained models.")] = 0,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    json: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw accuracy by layer: .png, .svg or .pdf.")
    ] = None,
    cache: Cache = Path("cache"),
) -> None:
    """Read classes off the features of models, layer by layer, beside pixels and untrained models."""
    from apps.probe import probe
    from apps.probe_request import ProbeRequest, parse_layers, parse_numbers

    request = ProbeRequest(
        tuple(models),
        probes=tuple(name.strip() for name in probes.split(",")),
        layers=parse_layers(layers),
        data=data,
        train_count=train_images,
        test_count=test_images,
        baselines=baselines,
        epochs=epochs,
        step_images=step_images,
        lrs=parse_numbers(lr),
        seed=seed,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    probe(request, json, plot, cache=cache, command=_command())


Model = Annotated[
    str | None, typer.Option(metavar="NAME|FOLDER", help="Bundled or official model, model folder or run folder.")
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="train|val|RECIPE|PATH|FILE.npz",
        help="What to compare with; may be given again. train and val: of the model's recipe (default: train); else a "
        "recipe, a data set, a folder, or an npz file of mu and sigma or arr_0 as ADM publishes them.",
    ),
]
ReferenceCount = Annotated[
    int | None, typer.Option(help="At most so many images of each reference, evenly. Default: all.", min=1)
]
Labels = Annotated[
    Literal["balanced", "uniform", "data"],
    typer.Option(help="Classes: in turn, equally many of each; drawn; or with the shares of the reference."),
]
ExtractorName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Feature extractor: inception-v3-compat, cifar-resnet56, encoder (--weights FOLDER), torch-fidelity's "
        "vgg16 and clip-... (--weights FILE), or your own as MODULE:CLASS.",
    ),
]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE|FOLDER", help="Weights of the extractor. Default: of Inception a download.")
]
PresetName = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="adm|fidelity",
        help="adm: as guided-diffusion's evaluator, without KID; fidelity: torch-fidelity's defaults. Precision and "
        "recall are of the features of FID in both.",
    ),
]
Bootstrap = Annotated[int, typer.Option(help="Resamplings for the standard error of FID; 0 is none.", min=0)]
Save = Annotated[Literal["png", "npz"] | None, typer.Option(help="Keep the images too.")]
OutFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder to write. Default: evaluations/MODEL-KIND-DIGEST.")
]


SAMPLING_OPTIONS = {
    "count": "-n",
    "labels": "--labels",
    "classes": "--classes",
    "seed": "--seed",
    "guidance": "--guidance",
    "guidance_schedule": "--guidance-schedule",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "steps": "--steps",
    "diffusion_steps": "--diffusion-steps",
    "scheduler": "--scheduler",
    "dtype": "--dtype",
}
"""Parameters of `fid` that mean nothing where images are measured that are there."""


@evaluate.command()
def fid(
    context: typer.Context,
    model: Model = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|FILE.npz", help="Compare these images instead of a model's, as they are."),
    ] = None,
    reference: References = None,
    reference_count: ReferenceCount = None,
    floor: Annotated[
        bool, typer.Option(help="Also compare as many other real images of the first reference: the least to expect.")
    ] = False,
    count: Annotated[
        int, typer.Option("--count", "-n", help="Images to generate; published figures take 50,000.")
    ] = 50000,
    labels: Labels = "balanced",
    classes: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Generate and compare these only, by name or number.")
    ] = None,
    seed: options.Seed = 0,
    guidance: options.Guidance = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    steps: options.Steps = None,
    diffusion_steps: options.DiffusionSteps = None,
    scheduler: options.Scheduler = None,
    extractor: ExtractorName = "inception-v3-compat",
    weights: Weights = None,
    preset: PresetName = "fidelity",
    bootstrap: Bootstrap = 0,
    save: Save = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    out: OutFolder = None,
    cache: Cache = Path("cache"),
) -> None:
    """Generate images and compare them with real ones: FID, KID, Inception score, precision and recall."""
    from apps.quality import evaluate_quality
    from apps.quality_request import QualityRequest
    from apps.request import SampleRequest

    if images is not None and model is None:
        _refuse(context, SAMPLING_OPTIONS, "--images are measured as they are")
    sampling = model and SampleRequest(
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
        dtype=dtype,
    )
    request = QualityRequest(
        "fid",
        sampling or None,
        images=images,
        references=tuple(reference or ["train"]),
        reference_count=reference_count,
        labels=labels,
        extractor=extractor,
        weights=weights,
        preset=preset,
        bootstrap=bootstrap,
        floor=floor,
        device=device,
    )
    evaluate_quality(request, out, cache=cache, save=save, command=_command())


@evaluate.command()
def rfid(
    model: Annotated[
        str, typer.Option(metavar="NAME|FOLDER", help="A tokenizer, or a generator, whose tokenizer is taken.")
    ],
    reference: Annotated[
        str,
        typer.Option(
            metavar="train|val|RECIPE|PATH",
            help="Images to reconstruct, and to compare with: those of the recipe, or others.",
        ),
    ] = "val",
    reference_count: ReferenceCount = None,
    extractor: ExtractorName = "inception-v3-compat",
    weights: Weights = None,
    preset: PresetName = "fidelity",
    bootstrap: Bootstrap = 0,
    save: Save = None,
    device: options.Device = "auto",
    out: OutFolder = None,
    cache: Cache = Path("cache"),
) -> None:
    """Reconstruct images by a tokenizer and compare them with what went in: no figure of generation."""
    from apps.quality import evaluate_quality
    from apps.quality_request import QualityRequest
    from apps.request import SampleRequest

    request = QualityRequest(
        "rfid",
        SampleRequest(model),
        references=(reference,),
        device=device,
        reference_count=reference_count,
        extractor=extractor,
        weights=weights,
        preset=preset,
        bootstrap=bootstrap,
    )
    evaluate_quality(request, out, cache=cache, save=save, command=_command())


@evaluate.command()
def replay(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A record.json of genaim evaluate, or its folder.")],
    weights: Annotated[
        str | None, typer.Option(metavar="FILE|FOLDER", help="Weights of the extractor. Default: as recorded.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Where to compute. Default: as recorded.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write. Default: evaluations/replay-DIGEST.")
    ] = None,
    cache: Cache = Path("cache"),
) -> None:
    """Repeat a recorded measurement from nothing, and compare the figures."""
    from apps.replay import replay

    replay(record, out, cache=cache, weights=weights, device=device, command=_command())


@evaluate.command()
def sweep(
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="The generator.")],
    guidance: Annotated[list[str] | None, typer.Option(metavar="NUMBERS", help="Guidance scales, as 1,2,4.")] = None,
    temperature: Annotated[list[str] | None, typer.Option(metavar="NUMBERS", help="Temperatures.")] = None,
    steps: Annotated[list[str] | None, typer.Option(metavar="NUMBERS", help="Numbers of steps.")] = None,
    guidance_schedule: options.GuidanceSchedule = None,
    best_by: Annotated[
        str, typer.Option(metavar="FIGURE", help="fid, kid, precision, recall or inception_score.")
    ] = "fid",
    reference: References = None,
    reference_count: ReferenceCount = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Images of each point.")] = 1000,
    labels: Labels = "balanced",
    seed: options.Seed = 0,
    extractor: ExtractorName = "inception-v3-compat",
    weights: Weights = None,
    preset: PresetName = "fidelity",
    bootstrap: Bootstrap = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: evaluations/MODEL-sweep.")] = None,
    cache: Cache = Path("cache"),
) -> None:
    """Measure a grid of sampling settings: a table and a plot with the best one marked."""
    from apps.quality_request import QualityRequest
    from apps.request import SampleRequest
    from apps.sweep import read_grid, sweep

    request = QualityRequest(
        "fid",
        SampleRequest(model, count=count, seed=seed, guidance_schedule=guidance_schedule, dtype=dtype),
        references=tuple(reference or ["train"]),
        device=device,
        reference_count=reference_count,
        labels=labels,
        extractor=extractor,
        weights=weights,
        preset=preset,
        bootstrap=bootstrap,
    )
    grid = read_grid({"guidance": guidance, "temperature": temperature, "steps": steps})
    folder = out or Path("evaluations") / f"{Path(model).name}-sweep"
    sweep(request, grid, best_by, folder, cache=cache, command=_command())


@evaluate.command()
def statistics(
    data: Annotated[
        str, typer.Argument(metavar="RECIPE|PATH|FILE.npz", help="A recipe's training images, a data set, or arr_0.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="File to write, as ADM's: mu and sigma.")],
    size: Annotated[
        int | None, typer.Option(help="Side of the images. Default: the recipe's; else as they are.")
    ] = None,
    extractor: ExtractorName = "inception-v3-compat",
    weights: Weights = None,
    device: options.Device = "auto",
    cache: Cache = Path("cache"),
) -> None:
    """Write the statistics of your own images once, for --reference FILE.npz."""
    from apps.quality import write_statistics

    write_statistics(
        data, out, size=size, extractor=extractor, weights=weights, device=device, cache=cache, command=_command()
    )


def _refuse(context: typer.Context, options: dict[str, str], why: str) -> None:
    """Raises ValueError if one of the options is given, by parameter and name."""
    sources = {name: context.get_parameter_source(name) for name in options}
    given = [options[name] for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if given:
        raise ValueError(f"{why}; leave out {', '.join(given)}.")


def _command() -> list[str]:
    """The command line that is being run."""
    return ["genaim", *sys.argv[1:]]
