"""The files of a run folder beside its checkpoints: the recipe as it was run, and the metrics."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from genaim.core.files import file_written_whole
from genaim.training.checkpoint import checkpoints
from genaim.training.config import RunConfig


def write_config(folder: Path, config: RunConfig) -> None:
    """Writes the resolved recipe into its run folder, or checks that it is the one that is there.

    Raises:
        ValueError: If the folder holds a run of another recipe.
    """
    path = folder / "config.yaml"
    if path.exists() and checkpoints(folder):
        changed = changed_keys(yaml.safe_load(path.read_text()), config)
        if changed:
            raise ValueError(
                f"{folder} holds a run with another '{changed[0]}'; choose another name= (init={folder} starts it from "
                "these weights), or remove the folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with file_written_whole(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def changed_keys(stored: dict[str, Any], config: RunConfig) -> list[str]:
    """Keys in which a stored recipe differs from the one of now; where a run computes and is tracked does not count.

    Keys that are younger than the stored recipe have their defaults in it.
    """
    with suppress(ValidationError):  # no recipe of today is compared as it is
        stored = type(config).model_validate(stored).model_dump(mode="json")
    now = config.model_dump(mode="json")
    return [key for key in now if now[key] != stored.get(key) and key not in ("trackers", "device", "dtype")]


def truncate_metrics(path: Path, step: int) -> None:
    """Drops the rows after ``step``, which a resumed run writes again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            kept.append(line)
    with file_written_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))
