"""The web demo's server: its endpoints, many clients at once, and files that it must not hand out."""

import inspect
import io
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from genaim.pretrained import load_generator
from samplers.inpaint import inpaint
from samplers.prepare import prepare
from tests.apps.demo_server import served

pytest.importorskip("gradio", reason="the web demo needs the extra 'demo'")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from apps.demo_jobs import Cancelled, Report, Update
from apps.demo_uploads import MAX_BYTES

CLIENTS = 32
MODEL = "mnist-var"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served([MODEL, "mnist-aim"], tmp_path_factory.mktemp("demo") / "files") as page:
        yield page


@pytest.fixture
def client(page: Any) -> Client:
    return connect(page)


def connect(page: Any) -> Client:
    """A client that gets the addresses of pictures; to download all of every step takes it most of its time."""
    return Client(
        page.local_url, verbose=False, analytics_enabled=False, download_files=False, httpx_kwargs={"timeout": 120}
    )


def digit(seed: int) -> tuple[Image.Image, np.ndarray]:
    """A picture of noise and a mask, of their own for every seed."""
    random = np.random.default_rng(seed)
    mask = np.zeros((28, 28), dtype=bool)
    top, left = random.integers(0, 14, 2)
    mask[top : top + 8 + seed % 5, left : left + 12] = True
    return Image.fromarray(random.integers(0, 256, (28, 28, 3), dtype=np.uint8)), mask


def painting(picture: Image.Image, mask: np.ndarray, folder: Path, name: str = "") -> dict[str, Any]:
    """What an endpoint takes for a picture with its mask."""
    files = [folder / f"{name}picture.png", folder / f"{name}mask.png"]
    picture.save(files[0])
    alpha = Image.fromarray(np.uint8(128) * mask)
    layer = Image.new("RGBA", mask.shape[::-1], (214, 51, 108, 0))
    layer.putalpha(alpha)
    layer.save(files[1])
    return {"background": handle_file(files[0]), "layers": [handle_file(files[1])], "composite": None}


def opened(page: Any, gallery: list[dict[str, Any]]) -> list[np.ndarray]:
    """The pictures of a gallery."""
    answers = [fetch(page, entry["image"]["url"].removeprefix(page.local_url)) for entry in gallery]
    assert all(status == 200 for status, _ in answers)
    return [np.asarray(Image.open(io.BytesIO(body))) for _, body in answers]


def test_a_second_demo_takes_the_next_free_port(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])  # is put back afterwards
    with served([MODEL], tmp_path / "second") as second:
        assert second.server_port > page.server_port >= 7860


def test_endpoints_are_named_and_documented(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/generate", "/inpaint", "/outpaint", "/upscale"}
    for endpoint in endpoints.values():
        assert len(endpoint["description"]) > 80
        names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        assert {"model", "class_name", "seed", "guidance", "temperature", "count"} <= set(names)


def test_generate(client: Client) -> None:
    gallery, text = client.predict(model=MODEL, class_name="7", seed=5, count=2, api_name="/generate")
    assert len(gallery) == 2 and text.startswith("mnist-var · 7 · seed 5 · guidance 2 · temperature 1 · ")
    assert Path(gallery[1]["image"]["path"]).name == "mnist-var-seed5-1.png"


def test_outpaint(client: Client, page: Any, tmp_path: Path) -> None:
    picture = Image.new("L", (28, 20), 7)
    picture.save(tmp_path / "grey.png")
    gallery, _, compared = client.predict(
        picture=handle_file(tmp_path / "grey.png"),
        left=0,
        top=3,
        right=6,
        bottom=0,
        model=MODEL,
        count=1,
        api_name="/outpaint",
    )
    (result,) = opened(page, gallery)
    assert result.shape == (23, 34) and (result[3:, :28] == 7).all()
    assert len(compared) == 2


def test_upscale(client: Client, page: Any, tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((28, 28)).convert("RGB")
    picture.save(tmp_path / "small.png")
    gallery, text, _ = client.predict(
        picture=handle_file(tmp_path / "small.png"), factor=2, model=MODEL, seed=3, count=2, api_name="/upscale"
    )
    first, second = opened(page, gallery)
    assert first.shape == second.shape == (56, 56, 3) and (first != second).any()
    assert "guidance" not in text, "an open class has none"
    again = np.asarray(Image.fromarray(first).resize((28, 28), Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(again - np.asarray(picture)).max() <= 1
    with pytest.raises(AppError, match=r"mnist-aim is not in the list of choices: \['mnist-var'\]"):
        client.predict(picture=handle_file(tmp_path / "small.png"), model="mnist-aim", api_name="/upscale")


def test_inpaint_with_less_strength_edits_the_whole(client: Client, page: Any, tmp_path: Path) -> None:
    picture, mask = digit(0)
    whole = painting(picture, np.zeros_like(mask), tmp_path)
    gallery, _, _ = client.predict(
        picture=whole, model=MODEL, class_name="3", strength=0.6, count=1, api_name="/inpaint"
    )
    expected = inpaint(load_generator(MODEL), picture, np.ones_like(mask), 3, strength=0.6)
    assert np.abs(opened(page, gallery)[0].astype(int) - np.asarray(expected[0])).mean() < 1


@pytest.mark.slow
def test_many_clients_at_once_get_what_each_gets_alone(page: Any, tmp_path: Path) -> None:
    model, dtype = load_generator(MODEL), page.jobs.models.dtype
    prepare(model, dtype)

    def alone(seed: int) -> np.ndarray:
        picture, mask = digit(seed)
        return np.asarray(inpaint(model, picture, mask, seed % 10, seed=seed, dtype=dtype)[0])

    def ask(seed: int) -> np.ndarray:
        sent = painting(*digit(seed), tmp_path, f"{seed}-")
        gallery, _, _ = connect(page).predict(
            picture=sent, model=MODEL, class_name=str(seed % 10), seed=seed, count=1, api_name="/inpaint"
        )
        return opened(page, gallery)[0]

    expected = [alone(seed) for seed in range(CLIENTS)]
    ask(0)
    before = peak_memory()
    with ThreadPoolExecutor(CLIENTS) as executor:
        got = list(executor.map(ask, range(CLIENTS)))
    for one, other in zip(got, expected, strict=True):
        assert (one == other).all()
    assert len({result.tobytes() for result in got}) == CLIENTS
    assert peak_memory() - before < 300 * 2**20


def peak_memory() -> int:
    """Bytes that this process has had in memory at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_cancelled_request_stops_between_steps(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    def endless(report: Report) -> Update:
        try:
            while True:
                report(Update("Step", []))
                time.sleep(0.02)
        except Cancelled:
            stopped.set()
            raise

    client = connect(page)
    with monkeypatch.context() as patch:
        patch.setattr(page.jobs, "generate", lambda ask: page.jobs.stepwise(endless))
        job = client.submit(model=MODEL, api_name="/generate")
        while not job.outputs():
            assert not job.done()
            time.sleep(0.02)
        assert job.cancel()
        assert stopped.wait(10)
    assert len(client.predict(model=MODEL, count=1, api_name="/generate")[0]) == 1, "the place is free again"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_name": "eleven"}, "Unknown class 'eleven'; "),
        ({"count": 2, "class_name": "1,2"}, "'1,2' names 2 classes; give one."),
    ],
)
def test_errors_are_told_in_a_line(client: Client, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AppError) as error:
        client.predict(model=MODEL, api_name="/generate", **arguments)
    assert str(error.value).startswith(message)


def test_bad_pictures_are_refused_in_a_line(client: Client, tmp_path: Path) -> None:
    picture, mask = digit(1)
    for wrong, message in (
        ((picture, np.zeros_like(mask)), "Nothing is painted; brush over"),
        ((picture, np.ones((20, 28), dtype=bool)), "The mask is 28x20, but the picture 28x28; make them equal."),
        ((Image.new("I;16", (28, 28)), mask), "The picture has 16 bits a channel"),
        ((Image.new("1", (20_000, 20_000)), mask), "The picture is too large"),
    ):
        with pytest.raises(AppError) as error:
            client.predict(picture=painting(*wrong, tmp_path), model=MODEL, api_name="/inpaint")
        assert str(error.value).startswith(message)
    with pytest.raises(AppError, match="There is no picture; upload or paste one"):
        client.predict(picture=None, model=MODEL, api_name="/outpaint")
    whole = painting(picture, np.ones_like(mask), tmp_path)
    assert len(client.predict(picture=whole, model=MODEL, count=1, api_name="/inpaint")[0]) == 1


def test_bad_input_left_tracebacks_in_the_terminal(
    client: Client, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    Image.new("L", (28, 20), 7).save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no picture")
    grey, text = handle_file(tmp_path / "grey.png"), handle_file(tmp_path / "text.png")
    capfd.readouterr()
    for name, arguments, message in (
        ("generate", {"model": "emoji"}, "emoji is not in the list of choices"),
        ("generate", {"model": None}, "Model 'None' is not served here"),
        ("generate", {"count": 99}, "Value 99 is greater than maximum value 16"),
        ("generate", {"guidance": "much"}, "The request cannot be read"),
        ("generate", {"seed": "abc"}, "The request cannot be read"),
        ("generate", {"class_name": ["7"]}, "Unknown class"),
        ("outpaint", {"picture": grey, "left": -3}, "Value -3 is less than minimum value 0"),
        ("outpaint", {"picture": text}, "The file is no picture"),
        ("outpaint", {"picture": 5}, "The request cannot be read"),
        ("upscale", {"picture": grey, "factor": 3}, "Factor 3 does not divide"),
        ("inpaint", {"picture": {"background": grey, "layers": 5}}, "The request cannot be read"),
    ):
        with pytest.raises(AppError) as error:
            client.predict(api_name=f"/{name}", **{"model": MODEL, **arguments})
        assert message in str(error.value) and "\n" not in str(error.value)
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", ["job", "component"])
def test_bugs_leave_a_traceback(
    client: Client, page: Any, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def broken(*arguments: Any) -> Any:
        raise KeyError("a bug")

    if place == "job":
        monkeypatch.setattr(page.jobs, "outpaint", broken)
    else:
        monkeypatch.setattr("apps.demo_parts.read_picture", broken)
    picture = handle_file(str(ROOT / "apps" / "examples" / "cat-mask.png"))
    with pytest.raises(AppError, match="internal error, KeyError: 'a bug'"):
        client.predict(picture=picture, model=MODEL, api_name="/outpaint")
    time.sleep(0.2)
    shown = capfd.readouterr().err
    assert "Traceback" in shown and "in broken" in shown


# Safety


def fetch(page: Any, path: str, **request: Any) -> tuple[int, bytes]:
    """Status and body of an answer."""
    try:
        with urlopen(Request(page.local_url + path, **request), timeout=20) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        str(ROOT / "README.md"),
        str(ROOT / "apps" / "demo.py"),
        inspect.getfile(np),
        "README.md",
        "../../../../../../etc/passwd",
    ],
)
def test_other_files_are_not_handed_out(page: Any, file: str) -> None:
    status, body = fetch(page, f"gradio_api/file={quote(file)}")
    assert status in (403, 404) and b"root:" not in body and b"genaim" not in body


def test_a_way_out_of_the_folder_is_closed(page: Any) -> None:
    status, body = fetch(page, f"gradio_api/file={quote(page.GRADIO_CACHE)}/../../../../../../../../etc/passwd")
    assert status in (403, 404) and b"root:" not in body


def test_a_request_cannot_name_a_file_of_the_server(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    mine = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    painted = {"background": mine, "layers": [mine], "composite": None}
    controls = [MODEL, "1", 0, 2, 1, 1]
    for name, data in (("outpaint", [mine, 1, 0, 0, 0, *controls]), ("inpaint", [painted, *controls, 0.5])):
        body, headers = json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
        status, answer = fetch(page, f"gradio_api/call/{name}", data=body, headers=headers)
        assert status == 200
        events = fetch(page, f"gradio_api/call/{name}/{json.loads(answer)['event_id']}")[1].decode()
        assert "event: error" in events and "event: complete" not in events and "event: generating" not in events


def test_only_this_machine_is_let_in_and_nothing_gets_round_the_queue(page: Any) -> None:
    assert page.server_name == "127.0.0.1" and page.share_url is None
    assert page.allowed_paths == [] and page.analytics_enabled is False
    data = json.dumps({"data": [MODEL, "1", 0, 2, 1, 1]}).encode()
    headers = {"Content-Type": "application/json"}
    assert fetch(page, "gradio_api/run/generate", data=data, headers=headers)[0] in (401, 403, 404)
    assert fetch(page, "gradio_api/api/generate", data=data, headers=headers)[0] in (401, 403, 404)


def test_uploads_have_a_limit(page: Any) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + bytes(MAX_BYTES + 1)
        + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert fetch(page, "gradio_api/upload", data=body, headers=headers)[0] == 413
