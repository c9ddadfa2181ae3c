"""The web demo as a person meets it, in a browser: an example, a mask painted with the mouse, a run.

GENAIM_SCREENSHOTS names a folder that gets a picture of every tab.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.apps.demo_server import served

pytest.importorskip("gradio", reason="the web demo needs the extra 'demo'")
pytest.importorskip("playwright", reason="a browser is driven by playwright, of the extra 'dev'")

from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt-get install chromium"),
]
MILLISECONDS = 60_000  # for what takes a moment on a busy machine
DRAWN = 3_000  # the editor has no sign of having drawn its picture
FOX = Path(__file__).parent.parent.parent / "apps" / "examples" / "fox.png"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served(["emoji-var", "mnist-var"], tmp_path_factory.mktemp("demo") / "files") as page:
        yield page


@pytest.fixture
def browser(demo: Any) -> Iterator[Page]:
    """The demo in a browser; in the end, nothing may have been fetched from elsewhere."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(MILLISECONDS)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(demo.local_url)
        yield page
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((demo.local_url, "data:", "blob:"))]
    assert asked and not elsewhere


def panel(page: Page, name: str) -> Any:
    """Opens a tab."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def run(tab: Any, name: str) -> None:
    """Starts a run and waits for its end."""
    tab.get_by_role("button", name=name, exact=True).click()
    expect(tab.locator(".status").first).to_contain_text(" · ", timeout=MILLISECONDS)


def shoot(page: Page, name: str) -> None:
    folder = os.environ.get("GENAIM_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # for pictures to appear
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def paint(page: Page, tab: Any) -> None:
    """Draws a stroke over the upper part of the editor's picture, which is shown in the middle of it."""
    box = tab.locator("canvas").first.bounding_box()
    assert box is not None
    middle, height = box["x"] + box["width"] / 2, box["y"] + 0.3 * box["height"]
    page.mouse.move(middle - 60, height)
    page.mouse.down()
    page.mouse.move(middle + 60, height, steps=2)
    page.mouse.up()


def download(page: Page, tab: Any) -> np.ndarray:
    """The result that is looked at."""
    with page.expect_download() as event:
        tab.get_by_text("Download", exact=True).click()
    assert event.value.suggested_filename.endswith("-0.png")
    return np.asarray(Image.open(event.value.path()).convert("RGB"))


def test_what_is_painted_with_the_mouse_is_painted_anew(
    browser: Page, demo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[np.ndarray] = []
    inpaint = demo.jobs.inpaint
    monkeypatch.setattr(demo.jobs, "inpaint", lambda *a: (sent.append(a[2]), inpaint(*a))[1])
    tab = panel(browser, "Inpaint")
    Image.new("RGB", (400, 300), "green").save(tmp_path / "other.png")
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "other.png")
    browser.wait_for_timeout(DRAWN)
    tab.locator(".gallery-item").first.click()
    expect(tab.get_by_label("Class")).to_have_value("Animals & Nature")
    browser.wait_for_timeout(DRAWN)
    paint(browser, tab)
    run(tab, "Inpaint")
    before, after = np.asarray(Image.open(FOX)), download(browser, tab)
    shoot(browser, "inpaint")

    (mask,) = sent
    example = np.asarray(Image.open(FOX.with_name("fox-mask.png")))
    stroke = mask & ~example
    assert (mask & example).sum() == example.sum(), "the mask that came with the example is still there"
    rows, columns = np.nonzero(stroke)
    assert stroke.sum() > 300 and 20 < rows.mean() < 50 and 54 < columns.mean() < 74
    changed = (before != after).any(-1)
    assert not changed[~mask].any()
    assert changed[stroke].mean() > 0.5 and changed[example].mean() > 0.5


def test_a_result_is_used_as_input(browser: Page) -> None:
    tab = panel(browser, "Generate")
    tab.get_by_label("Model").click()
    browser.get_by_role("option", name="mnist-var").click()
    expect(tab.get_by_label("number input for Guidance")).to_have_value("2")
    run(tab, "Generate")
    first = download(browser, tab)
    shoot(browser, "generate")
    tab.get_by_role("button", name="Use in Outpaint").click()
    expect(browser.get_by_role("tab", name="Outpaint")).to_have_attribute("aria-selected", "true")
    tab = browser.get_by_role("tabpanel").filter(visible=True)
    expect(tab.get_by_label("Model")).to_have_value("mnist-var")
    run(tab, "Outpaint")
    wider = download(browser, tab)
    assert wider.shape == (28, 28 + 64, 3) and (wider[:, 32:60] == first).all()
    shoot(browser, "outpaint")


def test_a_picture_is_enlarged(browser: Page) -> None:
    tab = panel(browser, "Upscale")
    tab.locator(".gallery-item").first.click()
    expect(tab.locator(".picture img")).to_be_visible()
    run(tab, "Upscale")
    assert download(browser, tab).shape == (128, 128, 3)
    shoot(browser, "upscale")


def test_what_cannot_be_done_is_said(browser: Page) -> None:
    tab = panel(browser, "Inpaint")
    tab.get_by_role("button", name="Inpaint", exact=True).click()
    expect(browser.get_by_text("There is no picture; upload or paste one, or take an example.")).to_be_visible()
