"""The files of a run folder beside its checkpoints: the lock, the recipe as it was run, and the metrics."""

import json
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from genaim.files import file_written_whole
from genaim.training.checkpoint import checkpoints, load_state
from genaim.training.config import RunConfig

WHERE_AND_HOW = frozenset(
    [
        *("name", "folder", "cache_folder", "data_fingerprint"),
        *("device", "dtype", "compile", "accumulate", "model.attention_backend", "model.gradient_checkpointing"),
        *("trackers", "log_every", "validate_every", "save_every"),
        *("data.max_bad_share", "data.num_workers"),
    ]
)
"""Keys that say where and how a run computes and what it tells. They change its weights by rounding or not at all; but
for the masks of dropout and the weight of a PatchGAN term, which are drawn and balanced for a micro-batch."""
Changes = dict[str, tuple[Any, Any]]
"""Dotted keys with the value before and the value now."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time train in a run folder. The lock is one of the system, and ends with the process.

    Raises:
        ValueError: If another process trains there.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is being trained by another process; wait for its end, or choose another name=."
        ) from None
    except (OSError, NotImplementedError):  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def write_config(folder: Path, config: RunConfig) -> None:
    """Writes the resolved recipe into its run folder, unless a run of another recipe has saved there.

    Raises:
        ValueError: If the folder holds a run of another recipe.
    """
    path = folder / "config.yaml"
    found = checkpoints(folder)
    if path.exists() and found:
        changed = changed_keys(yaml.safe_load(path.read_text()), config)
        _refuse(folder, changed, config, done=load_state(found[-1])["step"])
    folder.mkdir(parents=True, exist_ok=True)
    with file_written_whole(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _refuse(folder: Path, changed: Changes, config: RunConfig, done: int) -> None:
    """Raises if a recipe with these changes does not continue a run that has done so many steps."""
    constant = config.optimizer.schedule == "constant"
    for key, (before, now) in changed.items():
        why = ""
        if key == "steps":
            if constant and config.steps >= done:  # no step that is done was another one
                continue
            why = f", of which {done} are done" if constant else ", which the learning rate of schedule=cosine follows"
        raise ValueError(
            f"{folder} holds a run with another '{key}' ({before!r:.200}, now {now!r:.200}){why}; choose another name= "
            f"(init={folder} starts it from these weights), or remove the folder."
        )


def changed_keys(stored: dict[str, Any], config: RunConfig, ignored: Set[str] = WHERE_AND_HOW) -> Changes:
    """The differences between a stored recipe and the one of now.

    Keys that are younger than the stored recipe have their defaults in it. Data of another path are the same if the
    recipes have the same fingerprint of them.
    """
    with suppress(ValidationError):  # no recipe of today is compared as it is
        stored = type(config).model_validate(stored).model_dump(mode="json")
    before, now = _flat(stored), _flat(config.model_dump(mode="json"))
    same_data = config.data_fingerprint is not None and before.get("data_fingerprint") == config.data_fingerprint
    return {
        key: (before.get(key), now.get(key))
        for key in now | before
        if before.get(key) != now.get(key)
        and key not in ignored
        and not (same_data and re.fullmatch(r"data\.(train|val)\.\d+\.path", key))
    }


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """The values of nested mappings, and of lists of them, by dotted key."""
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{key}.{name}" if key else str(name))
    return found


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
