"""Published files from the Hub or a plain address: resumed where a download was cut off, and checked.

huggingface_hub says where a file of the Hub is and what its checksum is; the bytes come by plain requests, because its
own downloads start from zero after an interruption, and these files have gigabytes.
"""

import hashlib
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

from genaim.core.progress import Progress
from genaim.pretrained.official import RemoteFile

CHUNK = 1 << 20
MEGABYTE = 1_000_000
TIMEOUT = 30.0  # seconds without an answer or a byte
HEADERS = {"User-Agent": "Wget/1.21", "Accept-Encoding": "identity"}  # Dropbox shows browsers a page, not the file
RANGE_NOT_SATISFIABLE = 416


class Unreachable(Exception):
    """A file cannot be downloaded for a reason outside of it: no network, no such address, a broken connection."""


class Source(NamedTuple):
    """Where the bytes of a file are."""

    url: str
    """Their address."""
    sha256: str
    """The checksum that the Hub states; empty elsewhere."""


def download(file: RemoteFile, folder: Path, progress: Progress) -> Path:
    """The file in ``folder``, whole and checked; what an earlier call left unfinished is continued.

    Raises:
        Unreachable: If it cannot be downloaded.
        ValueError: If the checksum is not the published one; the file is then deleted.
        OSError: If the folder cannot be written.
    """
    target = folder / file.name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    source = _locate(file)
    partial, mark = folder / f"{file.name}.partial", folder / f"{file.name}.etag"
    _receive(source.url, partial, mark, progress)
    for expected in (file.sha256, source.sha256):
        found = _sha256(partial, len(expected))
        if found != expected:
            partial.unlink()
            raise ValueError(
                f"{file.name} from {file.url} has SHA-256 {found} instead of {expected} and was deleted; run the "
                "command again, and report the file if that does not help."
            )
    os.replace(partial, target)
    mark.unlink(missing_ok=True)
    return target


def _locate(file: RemoteFile) -> Source:
    """The address of a file, and its checksum where the Hub states one."""
    if file.repo is None:
        return Source(file.address, "")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT")
    url = hf_hub_url(file.repo, file.name, revision=file.revision, endpoint=endpoint)
    try:
        found = get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:  # of the library's HTTP client, which has changed from version to version
        raise Unreachable(_reason(error)) from None
    etag = found.etag or ""
    return Source(found.location, etag if len(etag) == 64 else "")  # the tag of a small file is no SHA-256


def _receive(url: str, partial: Path, mark: Path, progress: Progress) -> None:
    """Writes what is missing of ``partial``; ``mark`` holds the version of the file that it belongs to."""
    done = partial.stat().st_size if partial.exists() and mark.exists() else 0
    headers = HEADERS | ({"Range": f"bytes={done}-", "If-Range": mark.read_text()} if done else {})
    try:
        with _network():
            response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE or not done:
            raise Unreachable(_reason(error)) from None
        if error.headers.get("Content-Range", "").endswith(f"/{done}"):
            return  # an earlier call received the whole file and was ended before it could say so
        mark.unlink()
        return _receive(url, partial, mark, progress)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise Unreachable("the address answers with a web page")
        done = done if response.status == 206 else 0  # else the server sends the whole file
        _remember(mark, response.headers.get("ETag", ""))
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        _copy(response, partial, done, total, progress)
    if partial.stat().st_size < total:
        raise Unreachable(f"the connection ended after {partial.stat().st_size} of {total} bytes")


def _remember(mark: Path, etag: str) -> None:
    """Keeps a strong tag; with another the next call cannot know that its part is of the same file."""
    if etag and not etag.startswith("W/"):
        mark.write_text(etag)
    else:
        mark.unlink(missing_ok=True)


def _copy(response: Any, partial: Path, done: int, total: int, progress: Progress) -> None:
    """Appends a response to the first ``done`` bytes of ``partial``."""
    first, began, told = done, time.monotonic(), 0.0
    progress.start(f"{partial.stem}, MB", done // MEGABYTE, total // MEGABYTE)
    try:
        with open(partial, "ab" if done else "wb") as out:
            while chunk := _read(response):
                out.write(chunk)
                done += len(chunk)
                now = time.monotonic()
                if now - told > 0.2 or done == total:
                    told = now
                    progress.advance(done // MEGABYTE, {"MB/s": (done - first) / MEGABYTE / max(now - began, 1e-3)})
    finally:
        progress.stop()


def _read(response: Any) -> bytes:
    with _network():
        chunk: bytes = response.read(CHUNK)
    return chunk


def _sha256(path: Path, digits: int) -> str:
    """The first hex digits of a file's SHA-256; where none is wanted, the file is not read."""
    if digits == 0:
        return ""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:digits]


@contextmanager
def _network() -> Iterator[None]:
    """Turns what a connection raises into `Unreachable`, but for the server's own status."""
    try:
        yield
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        raise Unreachable(_reason(error)) from None


def _reason(error: Exception) -> str:
    """An error in a few words."""
    text = re.sub(r"\[Errno -?\d+\] |<urlopen error |>$", "", " ".join(str(error).split()))
    return text[:120].rstrip(" .") or type(error).__name__
