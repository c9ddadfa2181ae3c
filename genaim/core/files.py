"""Files that are written whole or not at all."""

import os
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
