"""Where a bundled model comes from: its data, its recipe, and what the run's records tell."""

import json
import os
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from apps.describe import in_yaml
from genaim.config import find_recipe, load_config, nearest
from genaim.core.progress import Progress
from genaim.data import DataConfig, ImageDataset, eval_batches
from genaim.training.config import AnyRunConfig, GeneratorRunConfig, TokenizerRunConfig, parse_run

BATCH_SIZE = 32


@dataclass(frozen=True)
class DataSource:
    """What a card says of the training data."""

    text: str
    """Name, maker and address, in Markdown."""
    licence: str
    """SPDX identifier."""
    may_be_shown: bool
    """Whether its pictures may appear in the card."""


SOURCES = {
    "noto_emoji": DataSource(
        "[Noto emoji](https://github.com/googlefonts/noto-emoji), Google; names and groups from Unicode 15",
        "Apache-2.0",
        True,
    ),
    "mnist": DataSource("[MNIST](http://yann.lecun.com/exdb/mnist/), LeCun et al.", "CC-BY-SA-3.0", False),
}
"""By the name of the data's folder."""


def data_source(data: DataConfig) -> DataSource:
    """What is known of the training data.

    Raises:
        ValueError: If it is not one known data set.
    """
    names = {Path(source.path).name for source in data.train}
    unknown = sorted(names - SOURCES.keys())
    if unknown or len(names) != 1:
        name = unknown[0] if unknown else " and ".join(sorted(names))
        raise ValueError(f"the licence of data '{name}' is not known; {nearest(name, SOURCES)}. Add it to SOURCES.")
    return SOURCES[names.pop()]


def counted(dataset: ImageDataset, what: str, progress: Progress) -> Iterator[Tensor]:
    """The images of a data set in batches, with progress."""
    progress.start(what, 0, len(dataset))
    done = 0
    for batch in eval_batches(dataset, BATCH_SIZE):
        assert batch.images is not None
        yield batch.images
        done += len(batch)
        progress.advance(done, {})
    progress.stop()


def command(config: TokenizerRunConfig | GeneratorRunConfig, recipe: str) -> str:
    """The command that repeats a run: its recipe, and the keys that differ from it.

    Raises:
        ValueError: If there is no such recipe.
    """
    committed = parse_run(load_config(find_recipe(recipe)), recipe)
    now, then = flat(portable(config)), flat(portable(committed))
    changed = [f"{key}={in_yaml(value)}" for key, value in now.items() if value != then.get(key)]
    return shlex.join(["genaim", "train", recipe, *changed])


def portable(config: AnyRunConfig) -> dict[str, Any]:
    """A recipe without what does not change the weights, and without this machine's folders."""
    plain = config.model_dump(mode="json", exclude={"tokenizer_weights", "data_fingerprint"})
    for key in ("folder", "device", "trackers", "cache_folder", "log_every", "save_every", "validate_every"):
        plain.pop(key, None)
    plain["data"].pop("num_workers")
    if config.kind == "generator":
        plain.pop("tokenizer")
        for key in ("num_classes", "class_names"):  # counted in the data
            plain["model"].pop(key)
    for part in ("train", "val"):
        plain["data"][part] = [
            {
                **source.model_dump(mode="json", exclude_defaults=True),
                "path": f"${{GENAIM_DATA}}/{Path(source.path).name}",
            }
            for source in getattr(config.data, part)
        ]
    return plain


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of the values in nested mappings."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a run's metrics; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def training_seconds(metrics: list[dict[str, float]]) -> float | None:
    """Wall time of a run over all its interruptions; None where no row tells it."""
    return next((row["train/seconds"] for row in reversed(metrics) if "train/seconds" in row), None)


def describe_split(data: DataConfig) -> str:
    """Such as ``first 1,000 images of the test split``."""
    source = data.val[0]
    return f"{f'first {source.limit:,}' if source.limit else 'all'} images of the {source.split} split"


def this_machine() -> str:
    """Processor and cores."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
