"""What a record of `genaim evaluate` identifies: code, files, devices and sizes, and what a replay says of them."""

import importlib
import json
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torch_fidelity")

from apps import quality
from apps import quality_subjects as subjects
from apps.extractors import NamedExtractor, load_extractor
from apps.quality_record import check_same_extractor, figure_in_words
from apps.quality_subjects import pixel_code
from apps.replay import OTHER_IMAGES, compared
from apps.sweep import circumstances
from genaim.core.progress import SilentProgress
from genaim.models.aim import AIM, AIMConfig
from genaim.pretrained import save_model
from tests.apps.conftest import CLASSES, record

CPU = torch.device("cpu")
EXTRACTOR = """
from torch_fidelity.feature_extractor_base import FeatureExtractorBase


class Colors(FeatureExtractorBase):
    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.scale = 1 / 255

    @staticmethod
    def get_provided_features_list():
        return ("colors",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "colors"

    def forward(self, images):
        return (images.float().mean((2, 3)) * self.scale * 1.0,)
"""


@pytest.fixture
def bitmaps(photos, tmp_path):
    """The pictures in files of equal size whatever they show."""
    folder = tmp_path / "bitmaps"
    for path in photos.rglob("*.png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).save(folder / path.parent.name / f"{path.stem}.bmp")
    return folder


def fid(folder: str) -> float:
    value: float = record(folder)["figures"][0]["figures"]["fid"]["value"]
    return value


def test_edited_code_of_an_extractor_gives_new_features(genaim, photos, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as an installed command has it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    arguments = ["evaluate", "fid", "--images", photos / "Cat", "--reference", photos / "Dog"]
    for name, code in {"first": EXTRACTOR, "second": EXTRACTOR.replace("* 1.0", "* 2.0")}.items():
        Path("measured_colors.py").write_text(code)
        monkeypatch.delitem(sys.modules, "measured_colors", raising=False)
        importlib.invalidate_caches()
        done = genaim(*arguments, "--extractor", "measured_colors:Colors", "--out", name)
        assert done.code == 0, done.err
    assert fid("second") == pytest.approx(4 * fid("first"), rel=1e-4)
    refused = genaim("evaluate", "replay", "first")
    assert refused.code == 2 and "restore its source files" in refused.err
    monkeypatch.delitem(sys.modules, "measured_colors")


def test_an_edit_of_the_same_size_is_measured_anew_and_told_by_a_replay(genaim, photos, bitmaps, cifar_weights):
    extractor = ["--extractor", "cifar-resnet56", "--weights", cifar_weights]
    arguments = ["evaluate", "fid", "--images", photos, "--reference", bitmaps, *extractor]
    assert genaim(*arguments, "--out", "first").code == 0
    path = bitmaps / "Cat" / "00.bmp"
    before = path.stat()
    Image.new("RGB", (8, 8), "red").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert genaim(*arguments, "--out", "second").code == 0
    assert fid("first") != fid("second")
    again = genaim("evaluate", "replay", "first")
    assert again.code == 0 and "note: the reference 'bitmaps' has other content now" in again.err
    assert "\nthe reference 'bitmaps' has other content now\n" in again.out and "fid was" in again.out
    path.rename(path.with_name("000.bmp"))  # a name matters by its place alone
    assert genaim(*arguments, "--out", "third").code == 0
    digests = [record(folder)["figures"][0]["reference_digest"] for folder in ("first", "second", "third")]
    assert digests[0] != digests[1] == digests[2]


def test_a_replay_tells_differences_of_figures_and_their_possible_reasons():
    row = {"images": "a", "reference": "b", "images_digest": "1", "reference_digest": "2"}
    fid, kid = {"value": 1.0, "error": 0.1}, {"value": 0.5, "error": None}
    rest = {
        "request": {"kind": "fid", "sampling": {}},
        "libraries": {"torch": "2.10"},
        "machine": {"device": "cpu", "threads": 1},
    }
    before = rest | {"figures": [row | {"figures": {"fid": fid}}]}
    changed = {"libraries": {"torch": "2.11"}, "machine": {"device": "cuda", "threads": 1}}
    now = rest | changed | {"figures": [row | {"figures": {"fid": fid | {"error": 0.2}, "kid": kid}}]}
    assert compared(before, now) == [
        "a against b: error of fid was 0.1, is 0.2",
        "a against b: kid was absent, is 0.5",
        "possible reason: device was cpu, is cuda",
        "possible reason: torch was 2.10, is 2.11",
    ]
    assert compared(before, before | changed) == ["all figures are those of the record"]
    drawn = now | {"figures": [row | {"figures": {"fid": kid}, "images_digest": "3"}]}
    assert f"the images 'a' {OTHER_IMAGES['fid']} now" in compared(before, drawn)
    files = {"request": {"sampling": None}, "figures": [row | {"figures": {"fid": kid}, "images_digest": "3"}]}
    assert "the images 'a' have other content now" in compared(before | {"request": {"sampling": None}}, now | files)


def test_a_replay_blames_the_reference_alone_for_reconstructions_of_it(
    genaim, unconditional, photos, options, tmp_path, monkeypatch
):
    shutil.copytree(photos, tmp_path / "mine")
    given = [tmp_path / "mine" if option == photos else option for option in options]
    assert genaim("evaluate", "rfid", "--model", unconditional, *given, "--out", "first").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("apps.quality_subjects.pixel_code", lambda: "edited")
        edited = genaim("evaluate", "replay", "first", "--out", "second")
    assert "all figures are those of the record" in edited.out
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mine" / "Cat" / "00.png")
    again = genaim("evaluate", "replay", "first")
    assert again.code == 0 and "\nthe reference 'mine' has other content now" in again.out and "fid was" in again.out
    assert "reconstructed' are made" not in again.out
    before, now = record("first"), json.loads(Path("second/record.json").read_text())
    assert before["figures"][0]["images_digest"] != now["figures"][0]["images_digest"]
    now["figures"][0]["figures"]["fid"]["value"] += 1
    told = [line for line in compared(before, now) if "reconstructed' are made" in line]
    assert told == [f"the images '{unconditional.name}, reconstructed' {OTHER_IMAGES['rfid']} now"]


def test_a_broken_record_is_one_line_before_anything_is_measured(genaim, photos, options, monkeypatch):
    assert genaim("evaluate", "fid", "--images", photos, *options, "--out", "first").code == 0
    whole = record("first")
    monkeypatch.setattr("apps.replay.evaluate_quality", lambda *a, **k: pytest.fail("measured"))
    (row,) = whole["figures"]
    for changed, told in (
        ({"request": [1]}, "key 'request'"),
        ({"request": whole["request"] | {"preset": 3}}, "key 'request.preset'"),
        ({"request": whole["request"] | {"colour": 3}}, "key 'request.colour': Unexpected"),
        ({"request": whole["request"] | {"sampling": "tiny"}}, "key 'request.sampling'"),
        ({"machine": [1]}, "key 'machine'"),
        ({"libraries": {"torch": None}}, "key 'libraries.torch'"),
        ({"extractor": "inception"}, "key 'extractor'"),
        ({"figures": []}, "key 'figures' has 0 rows, and key 'request' asks for 1"),
        ({"figures": [row, row]}, "key 'figures' has 2 rows, and key 'request' asks for 1"),
        ({"figures": ["fid"]}, "key 'figures.0'"),
        ({"figures": [row | {"figures": {"fid": 1}}]}, "key 'figures.0.figures.fid'"),
        ({"figures": [row | {"figures": {"fid": {"value": "low"}}}]}, "key 'figures.0.figures.fid.value'"),
        ({"figures": [row | {"figures": {}}]}, "key 'figures' has a row without figures"),
        ({"figures": [{k: v for k, v in row.items() if k != "reference_digest"}]}, "key 'figures.0.reference_digest'"),
    ):
        Path("broken.json").write_text(json.dumps(whole | changed))
        done = genaim("evaluate", "replay", "broken.json")
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert done.err.startswith("error: record 'broken.json': ") and told in done.err, done.err
    Path("part.json").write_text(json.dumps({k: v for k, v in whole.items() if k != "machine"}))
    assert "key 'machine' is missing" in genaim("evaluate", "replay", "part.json").err


@pytest.mark.parametrize("kind", ["fid", "rfid"])
def test_threads_and_code_decide_pixels(genaim, model, options, monkeypatch, kind):
    """Those of a generator and of a tokenizer; the model is hashed once."""
    hashed: list[object] = []
    count = subjects.fingerprint
    monkeypatch.setattr(subjects, "fingerprint", lambda module: hashed.append(module) or count(module))

    def images_digest(out: str) -> str:
        hashed.clear()
        amount = ["-n", 12] if kind == "fid" else []
        done = genaim("evaluate", kind, "--model", model, *amount, *options, "--out", out)
        assert done.code == 0 and len(hashed) == 1, done.err
        return str(record(out)["figures"][0]["images_digest"])

    found = {images_digest("first")}
    monkeypatch.setattr("apps.cache_keys.torch.get_num_threads", lambda: 77)
    found.add(images_digest("threads"))
    read = Path.read_bytes
    for name in ("transforms.py", "image_sets.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda p, name=name: read(p) + (b"#" if p.name == name else b""))
        pixel_code.cache_clear()
        found.add(images_digest(name))
    pixel_code.cache_clear()
    assert len(found) == 4


def test_what_decides_features_is_in_their_key(tmp_path, cifar_weights):
    small = load_extractor("cifar-resnet56", str(cifar_weights), CPU, SilentProgress())
    images = SimpleNamespace(key="k")
    folders = {
        quality.features_folder(tmp_path, images, small, torch.device(kind)) for kind in ("cpu", "cuda:0", "cuda")
    }
    assert len(folders) == 2
    found: list[NamedExtractor] = []
    for heads in (2, 4):  # of which the weights know nothing
        torch.manual_seed(0)
        config = AIMConfig(width=32, depth=1, num_heads=heads, image_size=8, patch_size=4, head_depth=None)
        save_model(tmp_path / str(heads), AIM(config))
        found.append(load_extractor("encoder", str(tmp_path / str(heads)), CPU, SilentProgress()))
    assert found[0].weights == found[1].weights
    assert found[0].identity != found[1].identity and found[0].cache_key != found[1].cache_key


def test_another_extractor_is_refused_with_what_helps(tmp_path, cifar_weights):
    named = load_extractor("cifar-resnet56", str(cifar_weights), CPU, SilentProgress())
    check_same_extractor(named, {"extractor": named.record()})
    helps = {
        "weights": "by --weights",
        "config": "config.json",
        "code": "source files",
        "layer": "libraries",
        "logits": "libraries",
    }
    for what, advice in helps.items():
        with pytest.raises(ValueError, match=f"has {what} .* made with other; .*{advice}"):
            check_same_extractor(named, {"extractor": named.record() | {what: "other"}})


def test_a_sweep_says_when_its_reference_is_statistics():
    row = {"images": "tiny", "images_count": 12, "figures": {}, "reference": "ref.npz", "reference_kind": "statistics"}
    rest = {
        "weights": "0",
        "extractor": {"name": "e", "weights": "1"},
        "settings": {"guidance_schedule": "constant"},
    }
    for count, told in ((1000, "ref.npz, statistics of 1,000"), (None, "ref.npz, statistics")):
        lines = circumstances({"figures": [row | {"reference_count": count}]} | rest)
        assert lines[1] == f"- reference: {told}" and "- guidance schedule: constant" in lines


NEED_WEIGHTS = {
    "vgg16": "would download its weights unchecked; give a file of torchvision's by --weights",
    "dinov2-vit-s-14": "downloads code and weights unchecked; take another --extractor",
    "clip-vit-b-32": "needs its weights; give the file of https://",
}


@pytest.mark.parametrize("name", NEED_WEIGHTS)
def test_extractors_that_would_download_by_themselves_are_refused(genaim, photos, name):
    refused = genaim("evaluate", "fid", "--images", photos, "--reference", photos, "--extractor", name)
    assert refused.code == 2 and NEED_WEIGHTS[name] in refused.err
    Path("w.pt").write_text("a program")
    refused = genaim(
        "evaluate", "fid", "--images", photos, "--reference", photos, "--extractor", name, "--weights", "w.pt"
    )
    assert refused.code == 2 and any(t in refused.err for t in ("no file of plain", "unchecked", "only its published"))


def test_options_of_images_that_are_there(genaim, photos, cifar_weights):
    base = ["evaluate", "fid", "--images", photos, "--extractor", "cifar-resnet56", "--weights", cifar_weights]
    refused = genaim(*base, "--reference", photos, "-n", 20, "--guidance", 2, "--classes", "Dog")
    assert refused.code == 2 and "measured as they are; leave out -n, --classes, --guidance." in refused.err
    refused = genaim(*base, "--reference", photos, "--device", "gpu")
    assert refused.code == 2 and "--device is 'gpu'" in refused.err
    assert genaim(*base, "--reference", photos, "--reference-count", 12, "--out", "some").code == 0
    assert record("some")["figures"][0]["reference_count"] == 12
    assert fid("some") > 1e-3  # of 30
    Path("twice").mkdir()
    for path in photos.rglob("*.png"):
        Image.open(path).resize((16, 16), Image.Resampling.NEAREST).save(Path("twice") / path.name)
    inline = ["--reference", "{path: twice}", "--floor", "--reference-count", 10, "--out", "data"]
    refused = genaim(*base, *inline)
    assert refused.code == 2 and "--floor needs 30 images besides the reference's 10" in refused.err
    inline.remove("--floor")
    assert genaim(*base, *inline).code == 0
    assert "cropped and resized to 8x8 pixels; the first one has 16x16" in record("data")["notes"][0]
    assert json.loads(record("data")["request"]["references"][0]) == {"path": str(Path("twice").resolve())}


def test_unreadable_references_are_found_before_generation(genaim, model, options, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("apps.quality_subjects.generate", lambda *a, **k: pytest.fail("generated"))
    shutil.copytree(photos, tmp_path / "broken")
    (tmp_path / "broken" / "Cat" / "03.png").write_text("no picture")
    given = [tmp_path / "broken" if option == photos else option for option in options]
    refused = genaim("evaluate", "fid", "--model", model, "-n", 12, *given)
    assert refused.code == 2 and "03.png" in refused.err and "repair or remove such files" in refused.err
    assert "max_bad_share" not in refused.err


def test_what_a_reader_should_know_is_in_the_record(genaim, model, unconditional, options, photos, cifar_weights):
    np.savez("ref.npz", arr_0=np.stack([np.asarray(Image.open(path)) for path in photos.rglob("*.png")]))
    given = ["ref.npz" if option == photos else option for option in options]
    done = genaim("evaluate", "fid", "--model", model, "-n", 12, "--classes", "Dog", *given, "--preset", "adm")
    assert done.code == 0 and "note: 'ref.npz' does not tell classes: all of it is compared" in done.out
    text = next(Path("evaluations").rglob("record.md")).read_text()
    assert "10 splits (ADM's have 5,000" in text and "classes: balanced over Dog" in text and "preset adm" in text
    found = record()
    assert found["settings"]["batch_size"] == 64 and "batch_size" not in found["request"]["sampling"]
    assert found["machine"]["device"] == "cpu" and found["notes"]
    assert genaim("evaluate", "fid", "--model", unconditional, "-n", 12, *options, "--out", "plain").code == 0
    assert "- classes: the model has none" in Path("plain/record.md").read_text()
    assert genaim("evaluate", "rfid", "--model", unconditional, *options, "--out", "rfid").code == 0
    assert f"- model: {unconditional}, weights {record('rfid')['weights']}" in Path("rfid/record.md").read_text()
    refused = genaim("evaluate", "fid", "--model", unconditional, "-n", 12, "--classes", CLASSES[0], *options)
    assert refused.code == 2 and "has no classes; leave out --classes" in refused.err


def test_folders_that_cannot_be_written_and_data_that_are_not_there_are_told_first(genaim, model, options, monkeypatch):
    Path("file").write_text("")
    for option in ("--cache", "--out"):
        refused = genaim("evaluate", "fid", "--model", model, "-n", 12, *options, option, "file/x")
        assert refused.code == 2 and f"error: {option} 'file/x' cannot be a folder, since '" in refused.err
    monkeypatch.setenv("GENAIM_DATA", "/nowhere")
    refused = genaim("evaluate", "fid", "--model", "emoji-var", "-n", 12, *options[2:])
    assert refused.code == 2 and "there is no data set '/nowhere/noto_emoji'; set GENAIM_DATA" in refused.err


def test_statistics_are_shared_by_processes(genaim, photos, cifar_weights, monkeypatch):
    Path("many").mkdir()
    for number in range(70):
        for path in photos.rglob("00.png"):
            Image.open(path).rotate(90 * (number % 4)).save(f"many/{number:02d}.png")
    arguments = ["evaluate", "statistics", "many", "--extractor", "cifar-resnet56", "--weights", cifar_weights]
    assert genaim(*arguments, "--out", "one.npz", "--cache", "c1").code == 0
    for process in (1, 0):  # the first waits for the others
        state = SimpleNamespace(
            process_index=process,
            num_processes=2,
            is_main_process=process == 0,
            main_process_first=nullcontext,
            wait_for_everyone=lambda: None,
        )
        monkeypatch.setattr(quality, "join_processes", lambda device, state=state: (state, CPU))
        assert genaim(*arguments, "--out", "two.npz", "--cache", "c2").code == 0
        chunks = sorted(path.name for path in Path("c2").rglob("*.safetensors"))
        assert chunks == ["000000.safetensors", "000001.safetensors"][process:]
        assert Path("two.npz").exists() == (process == 0)
    one, two = np.load("one.npz"), np.load("two.npz")
    assert (one["mu"] == two["mu"]).all() and (one["sigma"] == two["sigma"]).all()
    assert one["count"] == 70 and one["image_size"].tolist() == [8, 8]


def test_an_interruption_while_figures_are_computed_tells_how_to_go_on(genaim, photos, options, monkeypatch):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "quality", interrupted)
    done = genaim("evaluate", "fid", "--images", photos, *options)
    assert done.code == 130 and "the same command goes on: genaim" in done.err
    assert list(Path("cache").rglob("*.safetensors")) and not Path("evaluations").exists()


def test_each_process_has_a_gpu_of_its_own_unless_the_user_names_one(monkeypatch):
    monkeypatch.setattr(quality, "pick_device", torch.device)
    state = SimpleNamespace(device=torch.device("cuda", 1))
    monkeypatch.setattr(quality, "PartialState", lambda cpu, timeout: state)
    for name, own in {"cuda": "cuda:1", "cuda:0": "cuda:0", "cpu": "cpu"}.items():
        assert quality.join_processes(name) == (state, torch.device(own))


def test_a_distance_of_zero_is_shown_as_zero():
    assert figure_in_words("fid", {"value": -3.5e-13, "error": None}) == "0"
    assert figure_in_words("fid", {"value": 1.23456e-7, "error": 1e-9}) == "1.235e-07 ± 1e-09"
    assert figure_in_words("kid", {"value": -0.00123, "error": None}) == "-1.23"  # an unbiased estimate of 0
