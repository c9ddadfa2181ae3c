"""Folders and files of results: written whole or not at all, and never over files that are not our own."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genaim.files import file_written_whole, replace_folder

RECORD = "record.json"
RECORD_FORMAT = "genaim sample 1"


def read_record(path: Path) -> dict[str, Any]:
    """A record that `genaim sample` wrote.

    Raises:
        ValueError: If the file is something else.
    """
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise ValueError(f"'{path}' is not a record of genaim sample; give the record.json of a folder that it wrote.")
    return record


def check_replaceable(folder: Path) -> None:
    """Makes sure that writing ``folder`` anew loses nothing: it is absent, empty, or as a sampling left it.

    Raises:
        ValueError: If it holds anything else.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    advice = "choose another --out"
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"'{folder}' is not a plain folder; {advice}.")
    found = sorted(folder.iterdir())
    if not found:
        return
    if not (folder / RECORD).is_file():
        raise ValueError(f"folder '{folder}' holds other files, such as '{found[0].name}'; {advice}, or empty it.")
    files = read_record(folder / RECORD).get("files", {})
    for path in found:
        if path.name == RECORD:
            continue
        if not path.is_file() or path.name not in files:
            raise ValueError(f"folder '{folder}' holds a file of yours, '{path.name}'; {advice}, or move the file.")
        if hash_file(path) != files[path.name]:
            raise ValueError(f"'{path}' was changed since it was sampled; {advice}, or move the file.")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``folder`` and puts it in its place at the end; on any error nothing remains.

    Raises:
        OSError: With the name of ``folder``, also where the system names no file (a full disk).
    """
    folder = folder.absolute()
    made = [p for p in folder.parents if not p.exists()]
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        check_replaceable(folder)  # again: sampling may have taken hours
        replace_folder(folder, temporary)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if (
            isinstance(error, OSError)
            and error.errno is not None
            and str(temporary) in str(error.filename or temporary)
        ):
            raise OSError(error.errno, f"{os.strerror(error.errno)}; nothing was written", str(folder)) from error
        raise


def make_parent(file: Path) -> None:
    """Makes the folder of a file that long work will end with, so that errors come before it.

    Raises:
        ValueError: If the file is a folder.
        OSError: If its folder can be neither made nor written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise ValueError(f"'{file}' is a folder; give the name of a file.")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file.parent))


def check_writable(folder: Path, option: str) -> None:
    """Makes sure, before long work, that a folder can be made and written; nothing is made yet.

    Raises:
        ValueError: If it cannot, in the words of an option.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"{option} '{folder}' cannot be a folder, since '{there}' is a file; choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} '{folder}' cannot be written: no permission in '{there}'; choose another.")


def write_text(file: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with file_written_whole(file) as temporary:
        temporary.write_text(text)


def write_json(file: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def read_json(file: Path) -> Any:
    """The value of a JSON file, or None if it is something else.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        return json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
