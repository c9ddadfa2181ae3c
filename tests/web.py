"""An HTTP server on this machine that serves files as the Hub and download sites do: ranges, tags, redirects, cuts."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site(ThreadingHTTPServer):
    """Files by path, and how they are served."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None
        """Bytes of an answer after which the connection is closed."""
        self.ranges = True
        """Whether parts are served."""
        self.tags = True
        """Whether files have an ETag."""
        self.kind = "application/octet-stream"
        """The content type."""
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and asked range of every request."""
        self.sent = 0
        """Bytes of files that were sent."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that leave are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """Answers for a `Site`; a path of the Hub's form carries the Hub's headers."""

    server: Site
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        site = self.server
        site.requests.append((self.command, self.path, self.headers["Range"]))
        content = site.files.get(self.path.partition("?")[0])
        if content is None:
            return self.head(404, {"Content-Length": "0"})
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"Content-Type": site.kind} | ({"ETag": tag} if site.tags else {})
        if "/resolve/" in self.path:
            headers |= {"X-Repo-Commit": "0" * 40, "X-Linked-Etag": tag, "X-Linked-Size": str(len(content))}
        start, asked = 0, re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if asked and site.ranges and self.headers["If-Range"] in (None, tag):
            start = int(asked[1])
            if start >= len(content):
                return self.head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        part = content[start:]
        self.head(206 if "Content-Range" in headers else 200, headers | {"Content-Length": str(len(part))})
        if body:
            if site.cut_after is not None and len(part) > site.cut_after:
                part, self.close_connection = part[: site.cut_after], True
            site.sent += len(part)
            self.wfile.write(part)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Site]:
    """A running site."""
    site = Site()
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()
