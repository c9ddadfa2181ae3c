"""``python -m apps.bundle``: makes a bundled model, with its model card, of a finished run.

The card's figures and pictures come from the exported weights, so that they describe what is shipped.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.errors import guarded

if TYPE_CHECKING:
    import torch

    from apps.request import Settings
    from genaim.models import GenerativeModel
    from genaim.tokenizers import Tokenizer
    from genaim.training.config import GeneratorRunConfig, TokenizerRunConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

MAX_BYTES = {"model": 5_000_000, "tokenizer": 2_000_000}
SEED = 0
BATCH_SIZE = 16


def main() -> None:
    """Runs the command and exits; statuses as those of ``genaim``."""
    raise SystemExit(guarded(lambda: app(prog_name="python -m apps.bundle", standalone_mode=False)))


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="Run folder of a tokenizer or generator.")],
    name: Annotated[str, typer.Argument(help="Name of the bundled model.")],
    tokenizer: Annotated[str | None, typer.Option(help="Bundled tokenizer to share, instead of a copy.")] = None,
    dtype: Annotated[str, typer.Option(help="Format of the weights: float16 or bfloat16.")] = "float16",
    guidance: Annotated[float | None, typer.Option(help="Default guidance scale to store; 1 is off.")] = None,
    guidance_schedule: Annotated[str | None, typer.Option(help="Default guidance schedule to store.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Default temperature to store.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Default top-k to store; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default top-p to store; 1 is off.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default steps to store, where the order can choose.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe of the run. Default: the one of the run's name.")] = None,
    hardware: Annotated[str | None, typer.Option(help="What trained the run. Default: this machine.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time. Default: from the run's metrics.")] = None,
    notes: Annotated[str, typer.Option(help="Markdown for the end of the card, such as results.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of bundled models. Default: that of the package.")] = None,
) -> None:
    """Export a run's averaged weights in 16 bits, and write the model card with pictures."""
    from apps.model_card import Origin, write_card
    from apps.progress import make_progress
    from genaim.pretrained import load_generator, load_tokenizer, save_model
    from genaim.pretrained.names import BUNDLED

    config = read_run(run)
    progress = make_progress()
    load: Callable[[str], GenerativeModel | Tokenizer] = (
        load_generator if config.kind == "generator" else load_tokenizer
    )
    module = load(str(run))
    settings = None
    sampling = {
        "guidance_scale": guidance,
        "guidance_schedule": guidance_schedule,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "num_steps": steps,
    }
    if config.kind == "generator":
        settings = set_sampling(module, str(run), **sampling)
    elif tokenizer is not None or any(value is not None for value in sampling.values()):
        raise ValueError(f"'{run}' is a tokenizer, which is not sampled and has no tokenizer; give its dtype only.")
    storage = storage_dtype(dtype, module)
    if tokenizer is not None:
        check_shared(module, tokenizer)
    folder = (out or BUNDLED) / name
    with staged(folder) as temporary:
        save_model(temporary, module, dtype=storage, shared_tokenizer=tokenizer)
        check_sizes(temporary, config.kind)
        origin = Origin(run, config, recipe or config.name, hardware, minutes, notes)
        write_card(temporary, name, load(str(temporary)), origin, settings, tokenizer, progress)
    for path in sorted(folder.rglob("*.*")):
        progress.say(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")


def read_run(run: Path) -> "TokenizerRunConfig | GeneratorRunConfig":
    """The recipe of a run folder, as it was run.

    Raises:
        ValueError: If it is not a run folder, or that of an encoder.
    """
    import yaml

    from genaim.training.config import EncoderRunConfig, parse_run

    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"'{run}' is not a run folder: it has no config.yaml; give a folder that genaim train wrote.")
    config = parse_run(yaml.safe_load(path.read_text()), str(path))
    if isinstance(config, EncoderRunConfig):
        raise ValueError(f"'{run}' is an encoder, which has no samples to show; bundle a generator or a tokenizer.")
    return config


def set_sampling(model: "GenerativeModel | Tokenizer", source: str, **sampling: Any) -> "Settings":
    """Stores the default sampling in the model's config; returns the settings of the card's samples.

    Args:
        model: A generator.
        source: Its run folder.
        sampling: Fields of a `SampleRequest`; None keeps the model's own.

    Raises:
        ValueError: If an option does not fit the model.
    """
    from apps.model_card import GRID_ROWS
    from apps.request import SampleRequest, resolve
    from genaim.models import GenerativeModel
    from genaim.tokenizers import fingerprint

    assert isinstance(model, GenerativeModel)
    classes = model.config.num_classes
    columns = classes if 4 <= classes <= 16 else 8
    request = SampleRequest(
        source,
        count=GRID_ROWS * columns,
        seed=SEED,
        **sampling,
        batch_size=BATCH_SIZE,
        dtype="float32",
    )
    request.check()
    dtype = next(model.parameters()).dtype
    settings = resolve(request, model.config, fingerprint(model), model.device, dtype)
    names = ("guidance_scale", "guidance_schedule", "num_steps")
    chosen = {name: settings[name] for name in names} | settings["options"]
    defaults = model.config.sampling.model_copy(update=chosen)
    model.config = model.config.model_copy(update={"sampling": defaults})
    return settings


def storage_dtype(name: str, module: "GenerativeModel | Tokenizer") -> "torch.dtype":
    """The 16-bit format of a name, if it can hold the weights.

    Raises:
        ValueError: If the name is unknown, or a weight is not finite or too large.
    """
    import torch

    known = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise ValueError(f"unknown dtype '{name}'; use {' or '.join(known)}.")
    limit = torch.finfo(known[name]).max
    for key, value in module.state_dict().items():
        largest = value.abs().max().item() if value.is_floating_point() and value.numel() else 0.0
        if not largest <= limit:  # also where it is not a number
            raise ValueError(
                f"weight '{key}' reaches {largest:g}, but {name} ends at {limit:g}; use --dtype bfloat16, "
                "or train again if it is not finite."
            )
    return known[name]


def check_shared(model: "GenerativeModel | Tokenizer", name: str) -> None:
    """Makes sure that a bundled tokenizer is the one that the generator was trained with, up to 16-bit rounding.

    Raises:
        ValueError: If it is not bundled, or another.
    """
    from genaim.config import nearest
    from genaim.models import GenerativeModel
    from genaim.pretrained import bundled, load_tokenizer
    from genaim.tokenizers import same_weights

    assert isinstance(model, GenerativeModel)
    if name not in bundled():
        raise ValueError(f"tokenizer '{name}' is not bundled; {nearest(name, bundled())}. Bundle the tokenizer first.")
    if not same_weights(model.tokenizer, load_tokenizer(name)):
        raise ValueError(
            f"tokenizer '{name}' is not the one that the run was trained with; bundle that one, and share it."
        )


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a path outside the bundled models and moves what is written there to ``folder``, replacing it, at the end.

    On any error nothing changes.
    """
    temporary = folder.parent.with_name(f".{folder.parent.name}-{folder.name}-{os.getpid()}")
    try:
        yield temporary
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_sizes(folder: Path, kind: str) -> None:
    """Makes sure that the exported weights keep the size limits.

    Raises:
        ValueError: If a file is too large.
    """
    files = {"model" if kind == "generator" else "tokenizer": folder / "model.safetensors"}
    if (folder / "tokenizer").is_dir():
        files["tokenizer"] = folder / "tokenizer" / "model.safetensors"
    for part, path in files.items():
        size, limit = path.stat().st_size, MAX_BYTES[part]
        if size > limit:
            raise ValueError(
                f"the {part}'s weights take {size / 1e6:.2f} MB, but a bundled {part} may take {limit / 1e6:.0f} MB; "
                "train a smaller one (depth, width, channels)."
            )


if __name__ == "__main__":
    main()
