"""Files and folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_written_whole(file: Path) -> Iterator[Path]:
    """Yields a temporary name beside a file, with its ending, and renames it at the end; an error leaves nothing.

    The name is of this process alone, so that two that write the same file do not collide.
    """
    temporary = file.with_name(f".{file.stem}.tmp-{os.getpid()}{file.suffix}")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(folder: Path, new: Path) -> None:
    """Puts a new folder in a folder's place, if there is one; on any error the old one stays."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
