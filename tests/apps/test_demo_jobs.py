"""What the web demo computes: requests that do not disturb each other, and what it refuses."""

import io
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import apps.demo_models
from apps.demo_jobs import ANY_CLASS, Ask, Cancelled, Jobs, Report, Sides, Update
from apps.demo_models import Models, offered_generators
from apps.demo_uploads import MAX_BYTES, read_mask, read_picture
from genaim.data.transforms import tensor_to_pil
from genaim.models import GenerativeModel
from genaim.pretrained import load_generator
from samplers.generate import generate
from samplers.inpaint import inpaint, outpaint
from samplers.prepare import prepare
from samplers.super_resolve import super_resolve
from tests.apps.conftest import Genaim

CPU = torch.device("cpu")


@pytest.fixture
def jobs(model: Path, unconditional: Path) -> Iterator[Jobs]:
    made = Jobs(Models([str(model), str(unconditional)], CPU), 2)
    yield made
    made.close()


def last(updates: Generator[Update]) -> Update:
    *_, update = updates
    assert update.done
    return update


def picture(width: int = 12, height: int = 9, mode: str = "RGB") -> Image.Image:
    array = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(array, "RGBA").convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def same(first: list[Image.Image], second: list[Image.Image]) -> bool:
    return [image.tobytes() for image in first] == [image.tobytes() for image in second]


def ready(model: Path, jobs: Jobs) -> GenerativeModel:
    """Another copy of a model that is served."""
    loaded = load_generator(str(model))
    prepare(loaded, jobs.models.dtype)
    return loaded


def test_jobs_give_what_the_samplers_give(jobs: Jobs, model: Path) -> None:
    loaded, name = ready(model, jobs), str(model)
    options = loaded.config.sampling.options(temperature=0.8)
    drawn = last(jobs.generate(Ask(name, seed=4, temperature=0.8, count=5)))
    labels = torch.tensor([0, 1, 2, 0, 1])
    dtype = jobs.models.dtype
    assert same(drawn.pictures, tensor_to_pil(generate(loaded, labels, seed=4, options=options, dtype=dtype)))
    assert "seed 4" in drawn.text and "guidance 1.5" in drawn.text and "temperature 0.8" in drawn.text

    image, mask = picture(), np.zeros((9, 12), dtype=bool)
    mask[2:6, 3:9] = True
    painted = last(jobs.inpaint(Ask(name, "dog", seed=2, guidance=3.0, count=2), image, mask, 0.5))
    assert same(
        painted.pictures, inpaint(loaded, image, mask, 1, n=2, seed=2, guidance_scale=3.0, strength=0.5, dtype=dtype)
    )
    assert painted.before is image

    wider = last(jobs.outpaint(Ask(name, "2", count=2), image, Sides(left=5, bottom=2)))
    assert same(wider.pictures, outpaint(loaded, image, 2, left=5, bottom=2, n=2, dtype=dtype))
    assert wider.before is not None and wider.before.size == wider.pictures[0].size == (17, 11)


def test_upscaling_gives_what_the_command_gives(jobs: Jobs, model: Path) -> None:
    loaded, small = ready(model, jobs), picture(5, 4)
    sampling = {"seed": 6, "dtype": jobs.models.dtype}
    large = last(jobs.upscale(Ask(str(model), "cat", seed=6, count=2), small, 2, consistent=False))
    expected = [super_resolve(loaded, small, 2, 0, first_index=i << 20, consistent=False, **sampling) for i in (0, 1)]
    assert same(large.pictures, expected)
    assert large.before is not None and large.before.size == large.pictures[0].size == (10, 8)
    with pytest.raises(ValueError, match="factor 3 does not divide"):
        last(jobs.upscale(Ask(str(model)), small, 3))
    with pytest.raises(ValueError, match="at most 4\\.2 million"):
        last(jobs.upscale(Ask(str(model)), Image.new("RGB", (1025, 1024)), 2))


def test_models_are_offered_where_they_can_serve(model: Path) -> None:
    models = Models([str(model), "mnist-aim"], CPU)
    assert models.painters == [str(model), "mnist-aim"] and models.enlargers == [str(model)]


def test_every_scale_is_shown(jobs: Jobs, model: Path) -> None:
    updates = list(jobs.generate(Ask(str(model), count=3)))
    assert [update.text for update in updates[:-1]] == ["Step 1 of 3", "Step 2 of 3", "Step 3 of 3"]
    assert all(len(update.pictures) == 3 for update in updates)
    assert same(updates[-2].pictures, updates[-1].pictures)


def test_a_model_without_classes_takes_no_class_and_no_guidance(jobs: Jobs, unconditional: Path) -> None:
    name = str(unconditional)
    plain = last(jobs.generate(Ask(name, ANY_CLASS, guidance=4.0, count=2)))
    assert same(plain.pictures, last(jobs.generate(Ask(name, count=2))).pictures)
    with pytest.raises(ValueError, match="has no classes"):
        last(jobs.generate(Ask(name, "dog")))


def test_a_model_is_loaded_once_whoever_asks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def load(name: str, device: torch.device) -> GenerativeModel:
        calls.append(name)
        time.sleep(0.1)
        return load_generator(name, device=device)

    monkeypatch.setattr(apps.demo_models, "load_generator", load)
    models, found = Models([str(model)], CPU), list[object]()
    assert calls == [], "none is loaded before it is used"
    threads = [threading.Thread(target=lambda: found.append(models.load(str(model)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(found) == 8 and len({id(one) for one in found}) == 1


def test_at_most_so_many_requests_are_computed_at_once(jobs: Jobs) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(report: Report) -> Update:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return Update("", [])

    threads = [threading.Thread(target=lambda: last(jobs.stepwise(work))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def endless(stopped: threading.Event) -> Callable[[Report], Update]:
    def work(report: Report) -> Update:
        try:
            while True:
                report(Update("", []))
                time.sleep(0.001)
        except Cancelled:
            stopped.set()
            raise

    return work


def test_a_closed_request_stops_after_its_step(jobs: Jobs, model: Path) -> None:
    events = [threading.Event() for _ in range(3)]
    for event in events:  # more than there are workers: the places are free again
        updates = jobs.stepwise(endless(event))
        next(updates)
        updates.close()
        assert event.wait(5)
    assert last(jobs.generate(Ask(str(model)))).pictures


def test_closing_stops_all_requests(jobs: Jobs) -> None:
    stopped = threading.Event()
    updates = jobs.stepwise(endless(stopped))
    next(updates)
    jobs.close()
    assert stopped.wait(5)
    with pytest.raises(Cancelled):
        list(updates)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"count": 0}, "ask for 1 to 16"),
        ({"count": 17}, "ask for 1 to 16"),
        ({"class_name": "bird"}, "unknown class 'bird'"),
        ({"class_name": "cat,dog"}, "names 2 classes"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_a_request_that_cannot_be_honoured(jobs: Jobs, model: Path, ask: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        last(jobs.generate(Ask(str(model), **ask)))


def test_results_have_a_limit_in_all(jobs: Jobs, model: Path) -> None:
    large = Image.new("RGB", (2048, 2048))
    with pytest.raises(ValueError, match="ask for 4 or fewer"):
        last(jobs.inpaint(Ask(str(model), count=5), large, np.ones((2048, 2048), dtype=bool)))
    with pytest.raises(ValueError, match="at most 4\\.2 million"):
        last(jobs.outpaint(Ask(str(model)), large, Sides(left=1)))


def test_only_models_that_are_served() -> None:
    models = Models(["mnist-var"], CPU)
    with pytest.raises(ValueError, match="model 'emoji-var' is not served here"):
        models.load("emoji-var")
    with pytest.raises(ValueError, match="'mnist-vq' is a tokenizer, not a generator"):
        Models(["mnist-vq"], CPU)


def test_the_bundled_generators_are_offered() -> None:
    assert {"emoji-var", "mnist-var", "mnist-aim"} <= set(offered_generators())
    assert not any(name.endswith(("-vq", "-kl")) for name in offered_generators())


# What people send

FRAMES = [Image.new("L", (4, 4), grey) for grey in (0, 255)]
REFUSED = {
    "text": (b"no picture at all", "the file is no picture; give one of PNG"),
    "empty": (b"", "the file is no picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the file is no picture"),
    "cut off": (encoded(picture(64, 64))[:600], "the picture is broken"),
    "16 bits": (encoded(Image.new("I;16", (4, 4))), "16 bits a channel"),
    "animated": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "animation of 2 frames"),
    "bomb": (encoded(Image.new("1", (20_000, 20_000))), "too large"),
    "large": (encoded(Image.new("1", (2049, 2048))), "at most 4.2 million"),
    "heavy": (bytes(MAX_BYTES + 1), "at most 20 MB"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "the file is no picture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_are_refused(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        read_picture(data)
    assert "\n" not in str(error.value)


def test_pictures_that_are_read() -> None:
    assert read_picture(encoded(picture(1, 1))).size == (1, 1)
    assert read_picture(encoded(picture(5, 4, "CMYK"), "JPEG")).mode == "RGB", "results are PNG files"
    assert read_picture(encoded(picture(5, 4, "P"), "GIF")).mode == "RGB"
    assert read_picture(encoded(picture(5, 4, "RGBA"))).tobytes() == picture(5, 4, "RGBA").tobytes()
    upright = picture(5, 4).getexif()
    upright[0x0112] = 6
    assert read_picture(encoded(picture(5, 4), "JPEG", exif=upright)).size == (4, 5)


def test_a_mask_is_what_is_painted() -> None:
    alpha = np.array([[0, 15, 16, 128, 255]], dtype=np.uint8)
    layer = np.concatenate([np.zeros((1, 5, 3), np.uint8), alpha[..., None]], axis=2)
    assert read_mask(encoded(Image.fromarray(layer, "RGBA"))).tolist() == [[False, False, True, True, True]]
    assert read_mask(encoded(Image.fromarray(alpha))).tolist() == [[False, False, False, True, True]]


def test_without_gradio_the_command_says_what_to_install(genaim: Genaim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = genaim("demo")
    assert outcome.code == 2
    assert outcome.err == "error: the web demo needs Gradio, which is not installed; run: pip install 'genaim[demo]'\n"


def test_a_port_in_use_was_an_error_of_gradio(genaim: Genaim) -> None:
    pytest.importorskip("gradio", reason="the web demo needs the extra 'demo'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = genaim("demo", "--port", port)
    assert done.code == 2
    assert f"error: port {port} is in use at 127.0.0.1; choose another --port" in done.err
    assert done.err.count("\n") == 1


def test_the_guidance_slider_means_nothing_without_a_class(jobs: Jobs, model: Path) -> None:
    mask = np.zeros((9, 12), dtype=bool)
    mask[2:6, 3:8] = True
    ask = Ask(str(model), ANY_CLASS, guidance=4.0)
    plain = last(jobs.inpaint(Ask(str(model), ANY_CLASS), picture(), mask))
    assert same(last(jobs.inpaint(ask, picture(), mask)).pictures, plain.pictures)
    assert last(jobs.outpaint(ask, picture(), Sides(left=2))).pictures[0].size == (14, 9)
