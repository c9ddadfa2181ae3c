"""Downloads: whole, continued, checked, and refused with the reason."""

import hashlib
from pathlib import Path

import pytest

from genaim.core.progress import SilentProgress
from genaim.pretrained.download import Unreachable, download
from genaim.pretrained.official import RemoteFile
from tests.web import Site

CONTENT = bytes(range(256)) * 20_000  # 5 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HUB_PATH = "/owner/repo/resolve/main/weights.pth"


class Seen(SilentProgress):
    """Keeps what is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int]] = []

    def start(self, what: str, done: int, total: int) -> None:
        self.what, self.told = what, [(done, total)]

    def advance(self, done: int, figures: object) -> None:
        self.told.append((done, self.told[0][1]))


def plain(site: Site, sha256: str = "") -> RemoteFile:
    site.files["/weights.pth"] = CONTENT
    return RemoteFile("weights.pth", address=f"{site.url}/weights.pth?key=1", sha256=sha256)


def on_hub(site: Site, sha256: str = "") -> RemoteFile:
    site.files[HUB_PATH] = CONTENT
    return RemoteFile("weights.pth", "owner/repo", sha256=sha256)


@pytest.mark.parametrize("make", [plain, on_hub])
def test_a_file_arrives_whole_and_alone(site: Site, tmp_path: Path, make) -> None:
    progress = Seen()
    path = download(make(site, SHA256[:8]), tmp_path / "new" / "folder", progress)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["weights.pth"]
    assert progress.what == "weights.pth, MB"
    assert progress.told[0] == (0, 5)
    assert progress.told[-1] == (5, 5)


@pytest.mark.parametrize("make", [plain, on_hub])
def test_an_interrupted_download_is_continued(site: Site, tmp_path: Path, make) -> None:
    file = make(site, SHA256)
    site.cut_after = 2_000_000
    for _ in range(2):
        with pytest.raises(Unreachable):
            download(file, tmp_path, SilentProgress())
    assert not (tmp_path / "weights.pth").exists()
    site.cut_after = None
    progress = Seen()
    assert download(file, tmp_path, progress).read_bytes() == CONTENT
    assert progress.told[0] == (4, 5)
    assert site.sent == len(CONTENT), "no byte is sent twice"
    assert [asked for method, _, asked in site.requests if method == "GET"] == [
        None,
        "bytes=2000000-",
        "bytes=4000000-",
    ]


def test_a_file_that_has_changed_is_not_pieced_together(site: Site, tmp_path: Path) -> None:
    file = plain(site)
    site.cut_after = 2_000_000
    with pytest.raises(Unreachable):
        download(file, tmp_path, SilentProgress())
    site.cut_after = None
    site.files["/weights.pth"] = changed = CONTENT[::-1]
    assert download(file, tmp_path, SilentProgress()).read_bytes() == changed


@pytest.mark.parametrize("lacking", ["ranges", "tags"])
def test_a_site_that_cannot_continue_sends_the_whole_file_again(site: Site, tmp_path: Path, lacking: str) -> None:
    file = plain(site, SHA256)
    setattr(site, lacking, False)
    site.cut_after = 2_000_000
    with pytest.raises(Unreachable):
        download(file, tmp_path, SilentProgress())
    site.cut_after = None
    assert download(file, tmp_path, SilentProgress()).read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_taken(site: Site, tmp_path: Path) -> None:
    file = plain(site, SHA256)
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT)
    (tmp_path / "weights.pth.etag").write_text(f'"{SHA256}"')
    assert download(file, tmp_path, SilentProgress()).read_bytes() == CONTENT
    assert site.sent == 0


def test_a_part_that_is_too_long_is_not_taken(site: Site, tmp_path: Path) -> None:
    file = plain(site, SHA256)
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT + b"more")
    (tmp_path / "weights.pth.etag").write_text(f'"{SHA256}"')
    assert download(file, tmp_path, SilentProgress()).read_bytes() == CONTENT


def test_another_checksum_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"weights.pth from .* has SHA-256 {SHA256[:8]} instead of 0123abcd and was"):
        download(plain(site, "0123abcd"), tmp_path, SilentProgress())
    assert list(tmp_path.glob("weights.pth*")) == [tmp_path / "weights.pth.etag"]


def test_the_checksum_of_the_hub_is_compared(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = on_hub(site)
    monkeypatch.setattr("tests.web.Handler.head", _with_another_tag)
    with pytest.raises(ValueError, match=f"has SHA-256 {SHA256} instead of {'f' * 64}"):
        download(file, tmp_path, SilentProgress())


def _with_another_tag(handler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in (headers | {"X-Linked-Etag": f'"{"f" * 64}"'}).items():
        handler.send_header(name, value)
    handler.end_headers()


def test_a_web_page_is_no_checkpoint(site: Site, tmp_path: Path) -> None:
    file = plain(site)
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(Unreachable, match="answers with a web page"):
        download(file, tmp_path, SilentProgress())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [plain, on_hub])
def test_what_is_not_there_says_so(site: Site, tmp_path: Path, make) -> None:
    file = make(site)
    site.files.clear()
    with pytest.raises(Unreachable, match="404"):
        download(file, tmp_path, SilentProgress())


@pytest.mark.parametrize("repo", [None, "owner/repo"])
def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str | None) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"^Connection refused$"):
        download(RemoteFile("a.pth", repo, address="http://127.0.0.1:9/a.pth"), tmp_path, SilentProgress())


def test_errors_of_the_disk_are_not_those_of_the_network(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError):
        download(plain(site), tmp_path / "file" / "folder", SilentProgress())
