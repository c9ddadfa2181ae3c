"""A site on this machine instead of the network."""

from collections.abc import Iterator

import pytest

from tests.web import Site, serving


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A running site that is the Hub too."""
    with serving() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        yield site
