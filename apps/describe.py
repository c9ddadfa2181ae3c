"""`genaim models`, `genaim info` and the keys of recipes: what there is, told in tables."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from torch import nn

from apps.progress import make_progress
from apps.request import in_words
from genaim.config import find_recipe, load_config, recipes
from genaim.models import Encoder, GenerativeModel
from genaim.pretrained import OFFICIAL, bundled, find, from_pretrained
from genaim.pretrained.fetch import cached
from genaim.tokenizers import Tokenizer
from genaim.training.config import RUNS, parse_run

CARD = "README.md"
PIPE_WIDTH = 160


def show_models() -> None:
    """Prints a table of the bundled models."""
    table = Table(title="Bundled models", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "kind", "image", "classes", "parameters", "on disk", "licence"):
        table.add_column(heading, no_wrap=heading == "name")
    for name, folder in bundled().items():
        model = from_pretrained(folder)
        side, classes, image = sized(model).image_size, 0, ""
        if isinstance(model, GenerativeModel):
            classes = model.config.num_classes
            image = f"{model.config.low_res}x{model.config.low_res} to " if model.config.low_res else ""
        row = (kind_of(model), f"{image}{side}x{side}", str(classes or ""), millions(model))
        table.add_row(name, *row, f"{disk_size(folder) / 1e6:.1f} MB", licence(folder) or "")
    if table.row_count:
        console().print(table)
        print("\nsample one:  genaim sample --model NAME        more of it:  genaim info NAME\n")
    else:
        print("No model is bundled with this installation; train one of the recipes.\n")


def show_official() -> None:
    """Prints a table of the official checkpoints; loads and downloads nothing."""
    table = Table(title="Official checkpoints", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "family", "image", "parameters", "licence", "here"):
        table.add_column(heading, no_wrap=heading == "name")
    for name, row in OFFICIAL.items():
        image = f"{row.image_size}x{row.image_size}" if row.image_size else "any"
        table.add_row(name, row.family, image, row.parameters, row.licence.name, "yes" if cached(name) else "")
    console().print(table)
    print("\nA name is downloaded and converted when it is first used; genaim convert takes files that you have.\n")


def show_recipes() -> None:
    """Prints a table of the recipes."""
    table = Table(title="Recipes", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "trains a", "about"):
        table.add_column(heading, no_wrap=heading != "about")
    for name, path in recipes().items():
        kind = yaml.safe_load(path.read_text()).get("kind", "")
        table.add_row(name, kind, first_comment(path))
    console().print(table)
    print("\ntrain one:   genaim train NAME [key=value ...]  its keys:    genaim train NAME --keys")


def show_info(name: str) -> None:
    """Prints what a model is made of.

    Raises:
        ValueError: If it cannot be found or read.
    """
    folder = find(name, progress=make_progress(sys.stderr))
    model = from_pretrained(folder)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    rows: dict[str, str] = {"model": f"{name}, {kind_of(model)}", "folder": str(folder)}
    rows["images"] = f"{sized(model).image_size}x{sized(model).image_size}, {sized(model).num_tokens} tokens each"
    rows["parameters"] = f"{millions(model)}: " + ", ".join(
        f"{part} {millions(module)}"
        for part, module in model.named_children()
        if any(True for _ in module.parameters())
    )
    if isinstance(model, GenerativeModel):
        rows["classes"] = class_list(model)
        sampling = model.config.sampling.model_dump().items()
        rows["sampling"] = ", ".join(f"{k} {in_words(v)}" for k, v in sampling)
    if isinstance(model, GenerativeModel | Encoder):
        rows["config"] = as_yaml(model.config, exclude={"class_names"})
    if not isinstance(model, Encoder):
        rows["tokenizer"] = as_yaml(tokenizer_of(model).config)
    if (folder / CARD).is_file():
        rows["card"] = str(folder / CARD)
        rows["licence"] = licence(folder) or "not in the card"
    for heading, text in rows.items():
        table.add_row(heading, text)
    console().print(table, markup=False)


def show_keys(recipe: str | None, overrides: Sequence[str]) -> None:
    """Prints every key of a recipe, or of all kinds of recipes, with its value and meaning.

    Raises:
        ValueError: If the recipe cannot be used.
    """
    if recipe is not None:
        config = parse_run(load_config(find_recipe(recipe), overrides, expand=False), shlex.join([recipe, *overrides]))
        print_keys(type(config), config.model_dump(mode="json"))
        return
    for cls in RUNS.values():
        print(f"# {cls.__doc__}\n")
        print_keys(cls, None)


def print_keys(cls: type[BaseModel], values: dict[str, Any] | None) -> None:
    """Prints the keys of a config class; with ``values`` those of a recipe, else the defaults."""
    for key, text, meaning in config_keys(cls, values):
        print(f"{key} = {text}\n    {meaning}")


def config_keys(cls: type[BaseModel], values: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted keys of a config class in order, each with its value and choices, and its meaning."""
    values = values[0] if isinstance(values, list) and values else values
    for name, field in cls.model_fields.items():
        value = values.get(name) if isinstance(values, dict) else None
        inner = model_in(field.annotation, value)
        if inner is not None:
            yield from config_keys(inner, value, f"{prefix}{name}.")
            continue
        if not isinstance(values, dict):
            value = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
        choices = " | ".join(choices_in(field.annotation))
        meaning = " ".join((field.description or "").split())
        yield f"{prefix}{name}", in_yaml(value), meaning + (f" [{choices}]" if choices else "")


# Parts


def sized(model: GenerativeModel | Encoder | Tokenizer) -> Encoder | Tokenizer:
    """What knows the size of a model's images: its tokenizer, or itself."""
    return model if isinstance(model, Encoder) else tokenizer_of(model)


def tokenizer_of(model: GenerativeModel | Tokenizer) -> Tokenizer:
    """The tokenizer of a model, which may be it."""
    return model.tokenizer if isinstance(model, GenerativeModel) else model


def kind_of(model: GenerativeModel | Encoder | Tokenizer) -> str:
    """Such as ``var``, ``aim encoder`` or ``multiscale_vq tokenizer``."""
    kind: str = getattr(model.config, "kind", type(model).__name__)
    if isinstance(model, GenerativeModel):
        return kind
    return f"{kind} {'encoder' if isinstance(model, Encoder) else 'tokenizer'}"


def class_list(model: GenerativeModel, most: int = 20) -> str:
    """Number of classes, and the names of the first: ``3: 0 cat, 1 dog, 2 fish``."""
    names = [f"{i} {name}" for i, name in enumerate(model.config.class_names or ())]
    shown = names if len(names) <= most else [*names[:most], "...", names[-1]]
    return f"{model.config.num_classes or 'none'}" + (f": {', '.join(shown)}" if shown else "")


def millions(module: nn.Module) -> str:
    """Number of parameters."""
    number = sum(p.numel() for p in module.parameters())
    return f"{number / 1e6:.2f}M" if number >= 1e5 else f"{number:,}"


def disk_size(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def licence(folder: Path) -> str | None:
    """The licence that the front matter of a model card names."""
    card = folder / CARD
    parts = card.read_text().split("---", 2) if card.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return None
    head = yaml.safe_load(parts[1])
    return str(head["license"]) if isinstance(head, dict) and "license" in head else None


def first_comment(path: Path) -> str:
    """The first line of a recipe's head."""
    line = path.read_text().partition("\n")[0]
    return line.lstrip("# ").rstrip() if line.startswith("#") else ""


def as_yaml(config: BaseModel, exclude: set[str] | None = None) -> str:
    """A config as YAML."""
    plain = config.model_dump(mode="json", exclude=exclude)
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100).rstrip()


def in_yaml(value: Any) -> str:
    """A value as it would be written after ``key=``."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def model_in(annotation: Any, value: Any = None) -> type[BaseModel] | None:
    """The config class inside an annotation such as ``list[SourceConfig]``.

    Of several it is the one of the value's kind, and none where a value is there that is no config.
    """
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    found = [c for a in get_args(annotation) if (c := model_in(a, value)) is not None]
    if isinstance(value, str) or not found:
        return None
    kind = value.get("kind") if isinstance(value, dict) else None
    return next((c for c in found if len(found) > 1 and c.model_fields["kind"].default == kind), found[0])


def choices_in(annotation: Any) -> list[str]:
    """The literal values that a field takes, where nothing else fits."""
    if get_origin(annotation) is Literal:
        return [in_yaml(a) for a in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        parts = [["null"] if a is NoneType else choices_in(a) for a in get_args(annotation)]
        return [choice for part in parts for choice in part] if all(parts) else []
    return []


def console() -> Console:
    """Standard output; wide when piped, so that rows stay lines."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
