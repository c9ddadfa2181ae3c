"""Official checkpoints by name: downloaded and converted once, then folders like any other.

$GENAIM_HOME/models/NAME/        the converted model; a generator refers to its family's tokenizer by name
$GENAIM_HOME/downloads/NAME/     the published files, until they are converted
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from genaim.core.progress import Progress, StreamProgress
from genaim.pretrained.convert import FAMILIES, Converted, GeneratorFamily, convert
from genaim.pretrained.download import Unreachable, download
from genaim.pretrained.official import OFFICIAL
from genaim.pretrained.save import save_model
from genaim.tokenizers import Tokenizer


def home() -> Path:
    """The folder of official models: ``$GENAIM_HOME``, else ``~/.cache/genaim``."""
    return Path(os.environ.get("GENAIM_HOME") or "~/.cache/genaim").expanduser()


def cached(name: str) -> Path | None:
    """The folder of an official model, if it is there."""
    folder = home() / "models" / name
    return folder if (folder / "config.json").is_file() else None


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder of an official model, downloaded and converted if need be.

    Args:
        name: Name in `OFFICIAL`.
        progress: Where the course is told; None prints lines on standard error.

    Raises:
        ValueError: If a file cannot be downloaded (what to do is said), or is not what the name promises.
    """
    folder = cached(name)
    if folder is not None:
        return folder
    progress = progress or StreamProgress(sys.stderr)
    with _alone(name):
        folder = cached(name)  # another process may have been faster
        if folder is None:
            folder = _make(name, progress)
    return folder


def _make(name: str, progress: Progress) -> Path:
    row = OFFICIAL[name]
    downloads = home() / "downloads" / name
    try:
        files = [download(file, downloads, progress) for file in row.files]
    except Unreachable as error:
        raise ValueError(advice(name, str(error))) from None
    family = FAMILIES[row.family]
    if isinstance(family, GeneratorFamily):
        fetch(family.tokenizer, progress)
    progress.say(f"{name}: converting; the licence of these weights is {row.licence.name} ({row.licence.url})")
    folder = home() / "models" / name
    save_converted(folder, convert_official(name, files))
    shutil.rmtree(downloads, ignore_errors=True)
    return folder


def convert_official(name: str, files: Sequence[Path], tokenizer: Tokenizer | Path | None = None) -> Converted:
    """An official model from its files.

    Raises:
        ValueError: If a file is not what the name promises.
    """
    row = OFFICIAL[name]
    if len(files) != len(row.files):
        names = " and ".join(file.name for file in row.files)
        raise ValueError(f"'{name}' is made of {names}, not of {len(files)} files; give {len(row.files)}.")
    converted = convert(row.family, files, tokenizer=tokenizer, config=row.config)
    preset = getattr(converted.module.config, "preset", None)
    if preset != row.preset:
        found = f"'{preset}'" if preset else "no published size"
        raise ValueError(
            f"{', '.join(map(str, files))}: '{name}' should have size '{row.preset}', but these shapes are of {found}; "
            f"the right file is {row.files[0].url}."
        )
    return converted


def save_converted(folder: Path, converted: Converted) -> None:
    """Writes a converted model as a model folder."""
    save_model(
        folder,
        converted.module,
        shared_tokenizer=converted.shared_tokenizer,
        tokenizer_changes=converted.tokenizer_changes,
        probe=converted.probe,
    )


def advice(name: str, reason: str) -> str:
    """One line for a machine without network: which files to bring, and how they become the models that are missing."""
    family = FAMILIES[OFFICIAL[name].family]
    needed = [name]
    if isinstance(family, GeneratorFamily) and cached(family.tokenizer) is None:
        needed.append(family.tokenizer)
    urls = [f"'{file.url}'" for n in needed for file in OFFICIAL[n].files]
    commands = []
    for missing in needed:
        names = [file.name for file in OFFICIAL[missing].files]
        commands.append(shlex.join(["genaim", "convert", missing, *names, str(home() / "models" / missing)]))
    return (
        f"'{name}' cannot be downloaded ({reason}); elsewhere, download {' and '.join(urls)}, then run here: "
        f"{' && '.join(commands)}"
    )


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Lets one process at a time make a model."""
    from filelock import FileLock

    path = home() / "models" / f".{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield
