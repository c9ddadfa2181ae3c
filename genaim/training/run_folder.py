"""The files of a run folder beside its checkpoints: the recipe as it was run, and the metrics."""

import json
import os
from pathlib import Path

import yaml

from genaim.training.checkpoint import checkpoints
from genaim.training.config import RunConfig


def write_config(folder: Path, config: RunConfig) -> None:
    """Writes the resolved recipe into its run folder, or checks that it is the one that is there.

    Raises:
        ValueError: If the folder holds a run of another recipe.
    """
    path = folder / "config.yaml"
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if path.exists() and checkpoints(folder):
        before, now = yaml.safe_load(path.read_text()), yaml.safe_load(text)
        changed = [key for key in now if now[key] != before.get(key) and key not in ("trackers", "device", "dtype")]
        if changed:
            raise ValueError(
                f"{folder} holds a run with another '{changed[0]}'; choose another name= (init={folder} starts it from "
                "these weights), or remove the folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


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
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, path)
