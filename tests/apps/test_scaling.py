"""`genaim scaling`: a grid resumes as if it was never stopped, grows, and refuses what does not fit it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from apps.progress import StreamProgress
from apps.scaling_grid import images_of, model_of_size
from genaim.pretrained import save_model
from genaim.training.config import parse_run
from tests.tiny import HEADS, SIZES, make_latents
from tests.training.runs import make_images, make_tokenizer
from tests.training.runs import recipe as run_recipe

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
GRID = ("--sizes", "w8d1,w16d1,w16d2", "--data", "1/4,12,1", "--budget", "6", "optimizer.warmup_steps=1")
NAMES = [f"{size}-n{images}" for images in (24, 12, 6) for size in ("w8d1", "w16d1", "w16d2")]


@pytest.fixture
def recipe(tmp_path):
    """A generator recipe over 24 pictures, saving often."""
    make_images(tmp_path / "images")
    make_tokenizer(tmp_path)
    return write_recipe(tmp_path, name="tiny", folder="runs", save_every=2)


def write_recipe(tmp_path, **changes):
    config = run_recipe(tmp_path, "generator", **changes)
    del config["validate_every"]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def weights(folder):
    """Averaged weights of the newest checkpoint of every point."""
    newest = {run.name: sorted(run.glob("checkpoints/step-*"))[-1] for run in folder.iterdir() if run.is_dir()}
    return {name: load_file(path / "ema.safetensors") for name, path in newest.items()}


def same(a, b):
    return (
        a.keys() == b.keys()
        and all(a[n].keys() == b[n].keys() for n in a)
        and all(torch.equal(a[n][key], b[n][key]) for n in a for key in a[n])
    )


def results(folder):
    """The record, without what differs between two runs of the same."""
    record = json.loads((folder / "results.json").read_text())
    del record["command"]
    for point in record["points"]:
        assert point.pop("seconds") > 0
    return record


def test_a_grid_is_trained_measured_and_drawn(genaim, recipe):
    done = genaim("scaling", recipe, *GRID)
    assert done.code == 0, done.err
    folder = Path("runs/tiny-scaling")
    assert done.out.splitlines()[-1] == "runs/tiny-scaling/scaling.png"
    assert "point 1 of 9: w8d1, 24 images, 6 steps of 8" in done.out
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == sorted(NAMES)
    record = results(folder)
    assert [f"{p['size']}-n{p['images']}" for p in record["points"]] == NAMES
    for point in record["points"]:
        rows = [json.loads(line) for line in (folder / f"{point['size']}-n{point['images']}" / "metrics.jsonl").open()]
        curve = [(row["step"], row["val/loss"]) for row in rows if "val/loss" in row and row["step"] > 1]
        assert list(zip(point["steps"], point["losses"], strict=True)) == curve and len(curve) == 5
        assert point["lowest"] == min(point["losses"])
    assert [(f["against"], f["of"]) for f in record["fits"]] == [
        *(("steps", size) for size in ("w8d1", "w16d1", "w16d2")),
        *(("parameters", f"{images} images") for images in (24, 12, 6)),
        *(("data", size) for size in ("w8d1", "w16d1", "w16d2")),
        ("compute", "the best of all sizes"),
    ]
    assert all(len(fit["interval"]) == 2 for fit in record["fits"])
    page = (folder / "results.md").read_text()
    assert (
        f"genaim scaling {recipe} optimizer.warmup_steps=1 --sizes w8d1,w16d1,w16d2 --data 1/4,12,1 --budget 6" in page
    )
    assert page.count("\n| w16d2 | ") == 3 and page.count("\n| parameters | ") == 3 and "nats per token" in page
    assert Image.open(folder / "scaling.png").size == (990, 748)
    assert not (folder / "w8d1-n24" / "pictures").exists()


def test_a_finished_grid_trains_nothing_and_a_grown_one_only_what_is_new(genaim, recipe, monkeypatch):
    first = ("--sizes", "w8d1,w16d1", *GRID[2:])
    assert genaim("scaling", recipe, *first).code == 0
    folder = Path("runs/tiny-scaling")
    before, record = weights(folder), results(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    again = genaim("scaling", recipe, *first)
    assert again.out.count("is finished") == 6 and "validation at step" not in again.out
    assert results(folder) == record
    grown = genaim("scaling", recipe, *GRID)
    assert grown.code == 0, grown.err
    assert grown.out.count("is finished") == 6
    assert {path: path.stat().st_mtime_ns for path in times} == times
    after = weights(folder)
    assert sorted(after) == sorted(NAMES) and same({name: after[name] for name in before}, before)
    refused = genaim("scaling", recipe, *first)
    assert refused.code == 2 and "a grid with w16d2-n24, which --sizes and --data leave out" in refused.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_grid_ends_as_an_uninterrupted_one(genaim, recipe, monkeypatch, number):
    genaim("scaling", recipe, *GRID, "--out", "whole/study")
    advance = StreamProgress.advance

    def stop_in_the_second_point(self, done, figures):
        if self._what == "w16d1-n24" and done == 3:
            os.kill(os.getpid(), number)
        advance(self, done, figures)

    Path("parts").mkdir()
    os.chdir("parts")
    with monkeypatch.context() as patch:
        patch.setattr(StreamProgress, "advance", stop_in_the_second_point)
        stopped = genaim("scaling", recipe, *GRID, "--out", "study")
    assert stopped.code == 130 and stopped.err.count("\n") == 1
    assert "stopped after step 4 of 6; run the same command to go on" in stopped.err
    assert f"genaim scaling {recipe} optimizer.warmup_steps=1 --sizes" in stopped.err and "--out study" in stopped.err
    assert not Path("study/results.json").exists()
    resumed = genaim("scaling", recipe, *GRID, "--out", "study")
    assert resumed.code == 0, resumed.err
    assert resumed.out.count("is finished") == 1 and "continuing study/w16d1-n24 after step 4 of 6" in resumed.out
    whole = Path("../whole/study")
    assert same(weights(whole), weights(Path("study")))
    assert results(whole) == results(Path("study"))


def test_two_processes_train_the_grid_of_one(genaim, recipe):
    genaim("scaling", recipe, *GRID[:3], "12,1", *GRID[4:], "--out", "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "apps.cli", "scaling", recipe, *GRID[:3], "12,1", *GRID[4:], "--out", Path("two").absolute()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([*launch, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("point 6 of 6") == 1
    one, two = results(Path("one")), results(Path("two"))
    assert {m["processes"] for m in two["machines"]} == {2}
    for a, b in zip(one["points"], two["points"], strict=True):
        assert b["losses"] == pytest.approx(a["losses"], rel=1e-3)
        assert b["flops_per_step"] == a["flops_per_step"]


def test_all_points_share_the_latent_scale_that_the_first_measured(genaim, tmp_path):
    """With a scale of its own each, the squared errors of two data sizes would be in different units."""
    make_images(tmp_path / "images")
    save_model(tmp_path / "tokenizer", make_latents(image_size=16, latent_scale=None))
    path = write_recipe(tmp_path, folder="runs", name="kl")
    recipe = yaml.safe_load(path.read_text())
    recipe["model"] = {"kind": "mar", "num_heads": 1, "head": HEADS["gaussian_unit"], **SIZES["mar"]}
    path.write_text(yaml.safe_dump(recipe))
    command = ("scaling", path, "--sizes", "w8d1,w16d1", "--data", "3,1", "--budget", "3", "optimizer.warmup_steps=0")
    done = genaim(*command)
    assert done.code == 0, done.err
    folder = Path("runs/kl-scaling")
    configs = {p.parent.name: yaml.safe_load(p.read_text()) for p in folder.glob("*/config.yaml")}
    assert len({c["latent_scale"] for c in configs.values()}) == 1 and None not in {
        c["latent_scale"] for c in configs.values()
    }
    assert {(c["model"]["encoder_depth"], c["model"]["decoder_depth"]) for c in configs.values()} == {(1, 1)}


def test_a_study_of_other_weights_or_another_recipe_is_refused(genaim, recipe, tmp_path):
    grid = ("--sizes", "w8d1,w16d1", "--budget", "3", "optimizer.warmup_steps=1")
    assert genaim("scaling", recipe, *grid).code == 0
    for changed, name in (
        (("--budget", "4"), "another --budget"),
        (("batch_size=4",), "another 'batch_size'"),
        (("data.flip=true",), "another 'data.flip'"),
        (("validate_every=2",), "another 'validate_every'"),
    ):
        done = genaim("scaling", recipe, *grid, *changed)
        assert (done.code, done.err.count("\n")) == (2, 1) and name in done.err and "another --out" in done.err
    make_tokenizer(tmp_path)
    from genaim.pretrained import load_tokenizer

    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    tokenizer.codebook.weight.data += 1
    save_model(tmp_path / "tokenizer", tokenizer)
    done = genaim("scaling", recipe, *grid)
    assert done.code == 2 and "another 'tokenizer_weights'" in done.err


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"--sizes": "w8d1,huge"}, ["size 'huge'", "w64d4", "Allowed: d12, d16"]),
        ({"--sizes": "w8d1,w8"}, ["size 'w8'"]),
        ({"--sizes": "w8d1,w0d1"}, ["size 'w0d1' has a 0"]),
        ({"--sizes": "w8d1,w9d1h2"}, ["size 'w9d1h2'", "num_heads 2 must divide width 9"]),
        ({"--sizes": "w8d1,w8d1"}, ["--sizes names w8d1 twice"]),
        ({"--sizes": ","}, ["--sizes names nothing"]),
        ({"--sizes": "w8d1", "--data": "1"}, ["'w8d1' with 24 images is one point", "add --sizes"]),
        ({"--data": "0,1"}, ["--data 0 is no part of the 24 training images"]),
        ({"--data": "-1/2"}, ["--data -1/2 is no part"]),
        ({"--data": "1.5"}, ["--data 1.5 is neither a share, up to 1, nor a whole number"]),
        ({"--data": "25"}, ["--data 25 is more than the 24 training images"]),
        ({"--data": "half"}, ["--data 'half' is no number"]),
        ({"--data": "nan"}, ["--data 'nan' is no number"]),
        ({"--data": "1/0"}, ["--data '1/0' is no number"]),
        ({"--data": "24,1"}, ["--data names 24 twice"]),
        ({"--budget": "0"}, ["--budget is 0", "1 or more"]),
        (
            {"--budget": "2", "optimizer.warmup_steps": "2"},
            ["--budget is 2 steps", "optimizer.warmup_steps alone are 2"],
        ),
        ({"data.val": "[]"}, ["names no validation data"]),
        ({"batchsize": "8"}, ["unknown key 'batchsize'", "did you mean 'batch_size'?"]),
    ],
)
def test_what_cannot_be_studied_is_told_in_one_line(genaim, recipe, changes, fragments):
    wanted = {"--sizes": "w8d1,w16d1", "--data": "1/2,1", "--budget": "4", "optimizer.warmup_steps": "1", **changes}
    done = genaim("scaling", recipe, *(f"{name}={value}" for name, value in wanted.items()))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    for fragment in fragments:
        assert fragment in done.err
    assert list(Path().iterdir()) == []


def test_other_recipes_folders_and_missing_libraries_are_refused(genaim, recipe, tmp_path, monkeypatch):
    tokenizer = tmp_path / "tokenizer.yaml"
    tokenizer.write_text(yaml.safe_dump(run_recipe(tmp_path, "tokenizer")))
    done = genaim("scaling", tokenizer, *GRID)
    assert done.code == 2 and "trains a tokenizer, and a scaling study needs a generator's recipe" in done.err
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    done = genaim("scaling", recipe, *GRID, "--out", "mine")
    assert done.code == 2 and "mine is not empty and holds no scaling study" in done.err
    Path("mine/study.json").write_text("[]")
    done = genaim("scaling", recipe, *GRID, "--out", "mine")
    assert done.code == 2 and "mine/study.json' is not the file of a scaling study" in done.err
    monkeypatch.setattr("apps.plots.find_spec", lambda name: None)
    done = genaim("scaling", recipe, *GRID)
    assert done.code == 2 and "pip install 'genaim[eval]'" in done.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ({"kind": "var"}, "w128d3", {"width": 128, "depth": 3, "num_heads": 2}),  # 64 channels a head, as published
        ({"kind": "var", "preset": "tiny"}, "w96d2", {"width": 96, "depth": 2, "num_heads": 2}),  # 40 a head
        ({"kind": "var", "preset": "tiny"}, "w16d2h4", {"width": 16, "depth": 2, "num_heads": 4}),
        ({"kind": "var", "preset": "tiny", "width": 80, "drop_path": 0.1}, "d12", {"depth": 12, "drop_path": 0.1}),
    ],
)
def test_a_size_changes_width_depth_and_heads_alone(recipe, model, size, expected):
    raw = {**yaml.safe_load(recipe.read_text()), "model": model}
    found = model_of_size(size, model, parse_run(raw, "test"))
    config = parse_run({**raw, "model": found}, "test").model
    assert {key: getattr(config, key) for key in expected} == expected
    if size == "d12":
        assert config.width is None and not config.shared_adaln


def test_shares_and_numbers_are_dealt_to_the_sources():
    assert images_of("1/4", [100, 20]) == [25, 5]
    assert images_of("0.25", [100]) == images_of("25", [100]) == [25]
    assert images_of("60", [100, 20]) == [50, 10]
    assert images_of("1", [100, 20]) == [100, 20]
    assert images_of("0.001", [100, 20]) == [1, 1]
