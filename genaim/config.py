"""Configuration: YAML files and dotted overrides, validated by pydantic.

Every module's ``FooConfig`` derives from `Config`, which refuses unknown keys and reads the string under a field as its
description. `load_config` turns a YAML file and ``key=value`` overrides into a plain dictionary; `validate` turns that
into a config object, or raises one line that names the key, what is allowed and the nearest valid name.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

RECIPES = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")  # wheel, then checkout


class Config(BaseModel):
    """Base of all configs: immutable, no unknown keys, field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


LISTED = 30  # names that a line may list
MESSAGE = 300  # characters of another library's message that a line may quote
ConfigT = TypeVar("ConfigT", bound=BaseModel)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Says which names are allowed, the most similar one first: ``did you mean 'b'? Allowed: a, b``.

    Of a long list the beginning is told.
    """
    names = [str(a) for a in allowed]
    folded = {a.casefold(): a for a in reversed(names)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f"did you mean '{folded[close[0]]}'? " if close else ""
    shown = names if len(names) <= LISTED else [*names[:LISTED], f"... ({len(names)} in all)"]
    return f"{hint}Allowed: {', '.join(shown)}"


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, to be quoted, cut where it is long; its type if it has none."""
    return " ".join(str(error).split())[:MESSAGE].rstrip(" .") or type(error).__name__


def recipes() -> dict[str, Path]:
    """Names of the recipes that come with the package, and their files."""
    found: dict[str, Path] = {}
    for folder in RECIPES:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path, or by name with or without ``.yaml``; a path names no bundled recipe.

    Raises:
        ValueError: If there is no such file and no such recipe.
    """
    if Path(name).is_file():
        return Path(name)
    known = recipes()
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    raise ValueError(f"recipe '{name}' is neither a file nor a bundled recipe; {nearest(Path(name).stem, known)}.")


def data_root() -> Path | None:
    """The folder of development data: ``$GENAIM_DATA``, else ``../shared/data`` beside the checkout, else None."""
    if os.environ.get("GENAIM_DATA"):
        return Path(os.environ["GENAIM_DATA"])
    sibling = Path(__file__).parent.parent.parent / "shared" / "data"
    return sibling if sibling.is_dir() else None


def load_config(path: str | Path, overrides: Iterable[str] = (), *, expand: bool = True) -> dict[str, Any]:
    """Reads a YAML file and applies ``dotted.key=value`` overrides, whose values are YAML too.

    ``${NAME}`` in strings is replaced from the environment; ``${GENAIM_DATA}`` falls back to `data_root`. Without
    ``expand`` it stays as it is, for readers that open no file.

    Raises:
        ValueError: If the file is not a YAML mapping, an override has no ``=``, or a variable is not set.
    """
    try:
        config = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a YAML mapping of keys, not {type(config).__name__}.")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override '{override}' must have the form key=value, for example steps=1000.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"override '{override}': '{text}' is not valid YAML; quote it if it is text.") from None
        _set(config, key.split("."), value, key)
    expanded: dict[str, Any] = _expand(config) if expand else config
    return expanded


def _set(config: dict[str, Any], keys: list[str], value: object, name: str) -> None:
    for key in keys[:-1]:
        config = config.setdefault(key, {})
        if not isinstance(config, dict):
            raise ValueError(f"override '{name}' reaches into '{key}', which is a value and has no keys.")
    config[keys[-1]] = value


def _expand(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _expand(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v) for v in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    root = data_root()
    names = {**({"GENAIM_DATA": str(root)} if root else {}), **os.environ}
    for name in {part.split("}")[0] for part in value.split("${")[1:]}:
        if name not in names:
            raise ValueError(f"'{value}' needs the environment variable {name}; set it to a folder and run again.")
        value = value.replace("${" + name + "}", names[name])
    return value


def validate(cls: type[ConfigT], data: Mapping[str, Any], source: str) -> ConfigT:
    """Builds a config, or raises one line naming the first wrong key of ``source``.

    Raises:
        ValueError: If a key is unknown, missing or has a bad value.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key is an unknown one and often a missing one too: tell of the former.
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        owner, names = _locate(cls, problem["loc"])
        key = ".".join(names) or "(top level)"
        if problem["type"] == "extra_forbidden":
            hint = f" {nearest(names[-1], owner.model_fields)}." if owner else ""
            raise ValueError(f"{source}: unknown key '{key}';{hint}") from None
        if problem["type"] == "union_tag_not_found":
            raise ValueError(f"{source}: key '{key}.kind' is missing; it says what the {names[-1]} is.") from None
        if problem["type"] == "union_tag_invalid":
            tag, allowed = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "").split(", ")
            raise ValueError(f"{source}: key '{key}.kind' is '{tag}'; {nearest(tag, allowed)}.") from None
        if problem["type"] == "missing":
            raise ValueError(f"{source}: key '{key}' is missing.") from None
        message = requirement(problem["msg"].removeprefix("Value error, "))
        if message.startswith("must "):
            raise ValueError(f"{source}: key '{key}' is {problem['input']!r:.80}; it {message}.") from None
        if isinstance(problem["input"], Mapping):  # keys that do not agree
            raise ValueError(
                f"{source}: {message}" if not problem["loc"] else f"{source}: key '{key}': {message}"
            ) from None
        raise ValueError(f"{source}: key '{key}': {message} (got {problem['input']!r:.80})") from None


def requirement(message: str) -> str:
    """What pydantic asks of a value, as ``must be greater than 0``; other messages stay as they are."""
    words = re.sub(r"(Input|List|Tuple|Set|Dictionary|String) should (be|have)", r"must \2", message)
    return words.split(", unable to parse")[0].split(" after validation")[0]


def _locate(cls: type[BaseModel], path: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The config class that holds the last key of ``path`` (None where that is unclear), and the keys as written.

    Pydantic puts the tag of a union, which nobody wrote, between the keys.
    """
    owner: type[BaseModel] | None = cls
    names: list[str] = []
    for i, part in enumerate(path):
        tagged = [c for c in _subclasses(Config) if getattr(c.model_fields.get("kind"), "default", None) == part]
        last = i == len(path) - 1
        if owner is not None and isinstance(part, str) and part not in owner.model_fields and tagged and not last:
            owner = tagged[0]
            continue
        names.append(str(part))
        if owner is not None and not last and isinstance(part, str):
            field = owner.model_fields.get(part)
            owner = (_model_in(field.annotation) or owner) if field else None
    return owner, names


def _subclasses(cls: type[Config]) -> Iterator[type[Config]]:
    """All classes below one, those of its sub-classes too."""
    for kind in cls.__subclasses__():
        yield kind
        yield from _subclasses(kind)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    candidates = (_model_in(a) for a in getattr(annotation, "__args__", ()))
    return next((c for c in candidates if c is not None), None)
