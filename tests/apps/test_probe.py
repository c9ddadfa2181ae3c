"""`genaim evaluate probe`: tables, records and plots of tiny models, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps import probe
from apps.probe_report import Row, best, tables
from apps.probe_scores import KeptScores
from genaim.models import AIM, AIMConfig
from genaim.pretrained import save_model
from tests.evaluation.digits import write_bars
from tests.tiny import make_model, make_patches, make_var

QUICK = ("--epochs", 2, "--step-images", 16, "--lr", "1e-2", "--train-images", 40, "--test-images", 30)


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures of ten classes, and sixty others, as MNIST's files."""
    folder = tmp_path_factory.mktemp("data") / "bars"
    write_bars(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders: two encoders that differ in the order of pre-training, a causal generator, and others."""
    root = tmp_path_factory.mktemp("models")
    size = {"image_size": 28, "patch_size": 7, "width": 16, "depth": 2, "num_heads": 2, "head_depth": None}
    made = {}
    for seed, order in enumerate(("raster", "spiral")):
        torch.manual_seed(seed)
        made[order] = AIM(AIMConfig.model_validate({**size, "order": order}))
    made["causal"] = make_model("causal", make_patches(image_size=28, patch_size=7), "logistic", num_classes=10)
    made["small"] = make_model("causal", make_patches(), "logistic")
    made["upscaler"] = make_model("causal", make_patches(), "logistic", low_res=4)
    made["var"] = make_var()
    for name, model in made.items():
        save_model(root / name, model)
    return {name: root / name for name in made}


def test_tables_record_and_plot(genaim, bars, models):
    pytest.importorskip("matplotlib")
    names = (models["raster"], models["spiral"], models["causal"])
    wanted = ("evaluate", "probe", *names, "--data", bars, *QUICK, "--layers", "1,norm")
    done = genaim(*wanted, "--json", "new/probe.json", "--plot", "new/probe.png")
    assert done.code == 0, done.err
    assert "40 of bars (train), 60 images to train on; 30 of bars (test), 60 images to judge on; 10 classes" in done.out
    rows = [line for line in done.out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[:6]] == [
        "| features, best layer",
        "| pixels",
        "| raster, untrained",  # of the spiral one too
        "| raster",
        "| spiral",
        "| causal, untrained",
    ]
    assert done.out.splitlines()[-2:] == ["written: new/probe.png", "written: new/probe.json"]
    assert Image.open("new/probe.png").size[0] > 500
    record = json.loads(Path("new/probe.json").read_text())
    assert record["format"] == "genaim probe 1"
    assert record["protocols"]["attentive"]["epochs"] == 2 and record["protocols"]["knn"]["k"] == 20
    found = {(r["features"], r["layer"], r["probe"]): r["accuracy"] for r in record["results"]}
    assert len(found) == len(record["results"]) == 3 * (1 + 5 * 2)
    assert found["pixels", "pixels", "linear"] > 0.9
    assert {layer for name, layer, _ in found if name == "raster"} == {"1", "norm"}
    assert record["command"].startswith("genaim ")
    assert sorted(p.name for p in Path().iterdir()) == ["cache", "new"]


def test_layers_and_baselines_are_chosen(genaim, bars, models):
    wanted = ("evaluate", "probe", models["raster"], "--data", bars, "--probes", "knn", "--no-baselines")
    done = genaim(*wanted, "--layers", "-1,norm")
    assert done.code == 0, done.err
    assert "| raster | 1 |" in done.out and "| raster | norm |" in done.out and "pixels" not in done.out
    done = genaim(*wanted, "--layers", "last2")
    assert next(line for line in done.out.splitlines() if line.startswith("| raster")).count("|") == 3
    done = genaim(*wanted, "--batch-size", 7)
    for layer in ("0", "1", "norm", "mean of 0-1"):
        assert f"| raster | {layer} |" in done.out


def test_a_killed_run_goes_on_and_ends_as_a_whole_one(genaim, bars, models, monkeypatch):
    """Killed after the first unit, and again in fine-tuning; another seed or number of images is measured anew."""
    names = ("--probes", "knn,attentive,finetune", "--layers", "1,norm", "--no-baselines")
    wanted = ("evaluate", "probe", models["raster"], "--data", bars, *QUICK, *names)
    whole = genaim(*wanted, "--json", "whole.json", "--cache", "other")
    assert whole.code == 0, whole.err
    keep, tune = KeptScores.__setitem__, probe.fine_tune

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    def killed_after(kept, unit, scores):
        keep(kept, unit, scores)
        raise KeyboardInterrupt

    monkeypatch.setattr(KeptScores, "__setitem__", killed_after)
    cut = genaim(*wanted, "--json", "cut.json")
    assert cut.code == 130 and "the same command goes on: genaim " in cut.err and not Path("cut.json").exists()
    monkeypatch.setattr(KeptScores, "__setitem__", keep)
    monkeypatch.setattr(probe, "fine_tune", killed)
    assert genaim(*wanted).code == 130
    before = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*.json")}
    assert len(before) == 2 * 2
    monkeypatch.setattr(probe, "fine_tune", tune)
    done = genaim(*wanted, "--json", "cut.json")
    assert done.out.replace("cut.json", "whole.json") == whole.out
    results = [json.loads(Path(name).read_text())["results"] for name in ("cut.json", "whole.json")]
    assert results[0] == results[1] and len(results[0]) == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    kept = ("evaluate", "probe", models["raster"], "--data", bars, "--probes", "knn", "--layers", "1", "--no-baselines")
    for number, changed in enumerate([[], ["--seed", 1], ["--train-images", 30], ["--test-images", 20]], 1):
        assert genaim(*kept, *changed).code == 0
        assert len(list(Path("cache").rglob("*.json"))) == 5 + number
    monkeypatch.setattr(probe, "library_code", lambda: "edited")
    assert genaim(*kept).code == 0
    assert len(list(Path("cache").rglob("*.json"))) == 10


def test_scores_are_kept_by_content_number_format_and_version(genaim, models, tmp_path, monkeypatch):
    """An edit that leaves name and size alone is measured anew; a renamed file or another word for a format is not."""
    colors = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 28, 28, 3), np.uint8)
    for split, labels in zip(("train", "test"), colors, strict=True):
        for label, pictures in zip("abc", labels, strict=True):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(tmp_path / "set" / split / label / f"{number}.bmp")
    data = f"{{train: {{path: {tmp_path}/set}}, val: {{path: {tmp_path}/set, split: test}}}}"
    wanted = ("evaluate", "probe", models["raster"], "--data", data, "--probes", "knn", "--layers", "1")

    def measured(*options: object) -> int:
        before = len(list(Path("cache").rglob("*.json")))
        done = genaim(*wanted, "--no-baselines", *options)
        assert done.code == 0, done.err
        return len(list(Path("cache").rglob("*.json"))) - before

    assert measured() == 1
    path = tmp_path / "set" / "test" / "c" / "3.bmp"
    path = path.rename(path.with_name("9.bmp"))
    assert measured() == 0
    size = path.stat().st_size
    Image.new("RGB", (28, 28), "red").save(path)
    assert path.stat().st_size == size and measured() == 1
    (tmp_path / "set" / "test" / "c").rename(tmp_path / "set" / "test" / "b2")
    (tmp_path / "set" / "train" / "c").rename(tmp_path / "set" / "train" / "b2")
    assert measured() == 0  # numbers of classes count, not their names
    fast = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16}
    monkeypatch.setattr(probe, "pick_dtype", lambda name, device: fast.get(name, torch.float32))
    assert [measured("--dtype", name) for name in ("auto", "bfloat16", "float32")] == [1, 0, 0]
    monkeypatch.setattr(torch, "__version__", "9.8.7")
    assert measured() == 1


def test_fine_tuning_has_no_row_of_pixels(genaim, bars, models):
    done = genaim("evaluate", "probe", models["raster"], "--data", bars, *QUICK, "--probes", "knn,finetune")
    assert done.code == 0, done.err
    lines = {line.split(" | ")[0]: line for line in done.out.splitlines()[:8]}
    assert lines["| pixels"].endswith("| - |") and lines["| raster"].endswith("(mean of 0-1) |")
    assert lines["| raster, untrained"].endswith("(mean of 0-1) |")


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("var", [], "(var) gives no features to probe; give an encoder, or a causal generator"),
        ("upscaler", [], "enlarges pictures, and gives no features"),
        ("raster", ["--probes", "lineal"], "unknown probe 'lineal'; did you mean 'linear'"),
        ("raster", ["--probes", ""], "unknown probe ''"),
        ("raster", ["--layers", "2"], "layer 2 is not in this model of 2 blocks; give numbers from -2 to 1"),
        ("raster", ["--layers", "best"], "layer 'best' is not in this model"),
        ("raster", ["--train-images", "61"], "61 images are wanted of bars (train), 60 images; ask for 1 to 60"),
        ("raster", ["--test-images", "0"], "--test-images"),
        ("raster", ["--probes", "knn", "--epochs", "3"], "epochs are for the probes linear-mae, attentive, finetune"),
        ("raster", ["--lr", "fast"], "--lr is 'fast'; give positive numbers"),
        ("raster", ["--lr", "0.1,-1"], "give positive numbers"),
        ("raster", ["--probes", "finetune", "--lr", "0.1,0.2"], "finetune takes one learning rate"),
        ("raster", ["--batch-size", "0"], "--batch-size is 0"),
        ("raster", ["--dtype", "float16"], "unknown dtype 'float16'"),
        ("raster", ["--plot", "plot.txt"], "--plot is 'plot.txt'; it must end in .png, .svg, .pdf"),
        ("raster", ["--json", "."], "'.' is a folder"),
        ("small", [], None),
    ],
)
def test_what_it_refuses(genaim, bars, models, model, options, words):
    also = [models["raster"]] if words is None else []
    done = genaim("evaluate", "probe", *also, models[model], "--data", bars, *options)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert (words or "'small' sees images of another size than 'raster'; probe them apart") in done.err
    assert list(Path().iterdir()) == []


def test_images_that_no_probe_can_use(genaim, models, tmp_path):
    flat = tmp_path / "flat"
    for name in ("a", "b"):
        (flat / "one").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(flat / "one" / f"{name}.png")
    done = genaim("evaluate", "probe", models["raster"], "--data", flat)
    assert done.code == 2 and "flat, 2 images, have 1 classes; probes need 2 or more" in done.err
    (flat / "two").mkdir()
    Image.new("RGB", (8, 8)).save(flat / "two" / "c.png")
    done = genaim("evaluate", "probe", models["raster"], "--data", flat)
    assert done.code == 2 and "judged on their own training images, flat, 3 images; give --data" in done.err
    done = genaim("evaluate", "probe", models["raster"])
    assert done.code == 2 and "does not say which images it was trained on; give --data" in done.err


def test_without_matplotlib_a_plot_says_what_to_install(genaim, bars, models, monkeypatch):
    monkeypatch.setattr("apps.plots.find_spec", lambda name: None)
    done = genaim("evaluate", "probe", models["raster"], "--data", bars, "--plot", "p.png")
    assert done.code == 2 and "plots need Matplotlib" in done.err and "genaim[eval]" in done.err


def test_the_best_layer_is_marked() -> None:
    rows = [Row("m", "0", "knn", 0.5, 0.01), Row("m", "1", "knn", 0.75, 0.02), Row("m", "norm", "knn", 0.75, 0.02)]
    rows += [Row("pixels", "pixels", "knn", 0.25, 0.03)]
    assert best(rows)["m", "knn"] is rows[1]
    text = tables(rows)
    assert "| m | 75.00% (1) |" in text and "| pixels | 25.00% |" in text
    assert "| m | 1 | **75.00%** |" in text and "| m | norm | 75.00% |" in text
    assert "Standard errors are 2.00% to 3.00%" in text
    assert "| features | layer |" not in tables(rows[3:])
