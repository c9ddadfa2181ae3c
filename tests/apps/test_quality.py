"""`genaim evaluate fid` and its family: the same figures however they are computed, and one line for bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch_fidelity")

from genaim.evaluation import chunks
from genaim.pretrained import save_model
from tests.apps.conftest import record
from tests.tiny import make_tokenizer


def test_a_record_is_repeated_to_the_last_bit(genaim, model, options, monkeypatch):
    done = genaim("evaluate", "fid", "--model", model, "-n", 20, "--labels", "data", "--bootstrap", 5, *options)
    assert done.code == 0, done.err
    found = record()
    (row,) = found["figures"]
    assert (row["images_count"], row["reference_count"]) == (20, 30)
    assert set(row["figures"]) == {"fid", "kid", "precision", "recall", "inception_score"}
    assert row["figures"]["fid"]["error"] > 0 and found["settings"]["guidance_scale"] == 1.5
    text = next(Path("evaluations").rglob("record.md")).read_text()
    assert f"{row['figures']['fid']['value']:.4g} ±" in text and text.splitlines()[4] in done.out
    path = next(Path("evaluations").rglob("record.json")).resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = genaim("evaluate", "replay", path)
    assert again.code == 0, again.err
    assert "all figures are those of the record" in again.out
    assert not list(Path("cache").iterdir())
    other = json.loads(path.read_text()) | {"weights": "0" * 16}
    Path("other.json").write_text(json.dumps(other))
    refused = genaim("evaluate", "replay", "other.json", "--out", "b")
    assert refused.code == 2 and "but the record was made with 0000" in refused.err


def test_more_images_continue_those_that_there_are(genaim, model, options):
    assert genaim("evaluate", "fid", "--model", model, "-n", 20, *options).code == 0
    files = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*.safetensors")}
    assert genaim("evaluate", "fid", "--model", model, "-n", 70, *options, "--out", "more").code == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list(Path("cache").rglob("*.safetensors"))) == len(files) + 1
    row = record("more")["figures"][0]
    assert row["images_count"] == 70
    fewer = ["evaluate", "fid", "--model", model, "-n", 20, "--seed", 0, *options]
    done = genaim(*fewer, "--out", "fewer")
    assert done.code == 0 and "chunk" not in done.err  # all that is wanted is there
    done = genaim(*fewer, "--out", "kept", "--save", "npz")
    assert done.code == 0 and "1 of 1 chunks" in done.err  # but for the pictures


def test_killed_and_shared_evaluations_give_the_same_figures(genaim, model, options, monkeypatch):
    arguments = ["evaluate", "fid", "--model", model, "-n", 100, *options]
    assert genaim(*arguments, "--out", "whole", "--cache", "c1").code == 0
    write = chunks._write

    def killed(path, tensors):
        if path.name == "000001.safetensors":
            raise KeyboardInterrupt
        write(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "_write", killed)
        cut = genaim(*arguments, "--out", "cut", "--cache", "c2")
    assert cut.code == 130 and "the same command goes on" in cut.err
    assert not Path("cut").exists()
    assert genaim(*arguments, "--out", "cut", "--cache", "c2").code == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "apps.cli"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [*launch, *map(str, arguments), "--out", "two", "--cache", "c3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert record("two")["figures"] == record("cut")["figures"] == record("whole")["figures"]


def test_images_that_are_kept_give_the_same_figures(genaim, model, options, photos):
    assert genaim("evaluate", "fid", "--model", model, "-n", 12, *options, "--save", "npz", "--out", "npz").code == 0
    assert genaim("evaluate", "fid", "--model", model, "-n", 12, *options, "--save", "png", "--out", "png").code == 0
    assert len(list(Path("png/images").iterdir())) == 12
    given = [photos if option == photos else option for option in options]
    for images in ("npz/samples.npz", "png/images"):
        out = f"of-{Path(images).stem}"
        assert genaim("evaluate", "fid", "--images", images, *given, "--out", out).code == 0
        figures, before = (record(folder)["figures"][0]["figures"] for folder in (out, "png"))
        for name, figure in before.items():
            assert figures[name]["value"] == pytest.approx(figure["value"], rel=1e-4, abs=1e-6), name


def test_statistics_of_a_folder_are_a_reference(genaim, model, photos, cifar_weights):
    extractor = ["--extractor", "cifar-resnet56", "--weights", cifar_weights]
    assert genaim("evaluate", "statistics", photos, "--out", "ref.npz", *extractor).code == 0
    assert genaim("evaluate", "fid", "--model", model, "-n", 12, "--reference", "ref.npz", *extractor).code == 0
    alone = record()["figures"][0]
    done = genaim("evaluate", "fid", "--model", model, "-n", 12, "--reference", photos, *extractor, "--out", "whole")
    assert done.code == 0
    whole = record("whole")["figures"][0]
    assert alone["figures"]["fid"] == whole["figures"]["fid"] and "kid" not in alone["figures"]
    assert (alone["reference_kind"], alone["reference_count"], alone["reference_size"]) == ("statistics", 30, "8x8")
    assert "ref.npz, statistics of 30" in next(Path("evaluations").rglob("record.md")).read_text()
    np.savez("small.npz", arr_0=np.zeros((12, 4, 4, 3), np.uint8))
    refused = genaim("evaluate", "fid", "--images", "small.npz", "--reference", "ref.npz", *extractor)
    assert refused.code == 2 and "images of 4x4 pixels, and reference 'ref.npz' is of images of 8x8" in refused.err
    np.savez("adm.npz", **{name: np.load("ref.npz")[name] for name in ("mu", "sigma", "extractor")})
    assert (
        genaim("evaluate", "fid", "--model", model, "-n", 12, "--reference", "adm.npz", *extractor, "--out", "adm").code
        == 0
    )
    told = record("adm")
    assert told["figures"][0]["reference_size"] == "unknown" and "'adm.npz' does not say" in told["notes"][0]


def test_reconstruction_is_a_command_of_its_own(genaim, tmp_path, options):
    save_model(tmp_path / "vq", make_tokenizer())
    done = genaim("evaluate", "rfid", "--model", tmp_path / "vq", *options)
    assert done.code == 0, done.err
    (row,) = record()["figures"]
    assert row["images"] == "vq, reconstructed" and row["images_count"] == row["reference_count"] == 30
    refused = genaim("evaluate", "fid", "--model", tmp_path / "vq", *options)
    assert refused.code == 2 and "vq" in refused.err


def test_a_class_is_compared_with_its_own_images(genaim, model, options, photos):
    done = genaim("evaluate", "fid", "--model", model, "-n", 12, "--classes", "Dog", *options)
    assert done.code == 0, done.err
    assert record()["figures"][0]["reference_count"] == 10
    refused = genaim("evaluate", "fid", "--model", model, "-n", 12, "--classes", "Dog", "--floor", *options)
    assert refused.code == 2 and "has 0 more" in refused.err  # those of other classes do not count
    flat = [photos / "Dog" if option == photos else option for option in options]
    refused = genaim("evaluate", "fid", "--model", model, "-n", 12, "--labels", "data", *flat)
    assert refused.code == 2 and "which has none; take balanced or uniform" in refused.err


def test_classes_of_a_reference_matter_only_where_they_are_used(genaim, model, options, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "owls")
    (tmp_path / "owls" / "Dog").rename(tmp_path / "owls" / "Owl")
    given = [tmp_path / "owls" if option == photos else option for option in options]
    assert genaim("evaluate", "fid", "--model", model, "-n", 12, *given).code == 0
    refused = genaim("evaluate", "fid", "--model", model, "-n", 12, "--labels", "data", *given)
    assert refused.code == 2 and "class 'Owl' is not one of the training classes" in refused.err


def test_a_floor_is_of_other_real_images(genaim, model, options):
    done = genaim("evaluate", "fid", "--model", model, "-n", 12, "--reference-count", 15, "--floor", *options)
    assert done.code == 0, done.err
    names = [row["images"] for row in record()["figures"]]
    assert names == ["tiny", "photos, others"]
    refused = genaim("evaluate", "fid", "--model", model, "-n", 20, "--reference-count", 15, "--floor", *options)
    assert refused.code == 2 and "--floor needs 20 images besides the reference's 15" in refused.err


SWEEP = ("evaluate", "sweep", "--guidance", "1,3", "-n", 12)


def test_a_sweep_marks_the_best_point(genaim, model, options):
    arguments = [*SWEEP, "--model", model, "--temperature", "0.5,1", *options]
    done = genaim(*arguments)
    assert done.code == 0, done.err
    (folder,) = Path("evaluations").iterdir()
    found = json.loads((folder / "sweep.json").read_text())
    values = [point["figures"]["fid"]["value"] for point in found["points"]]
    assert len(values) == 4 and found["best"] == values.index(min(values))
    text = (folder / "sweep.md").read_text()
    assert text.startswith("# Sweep\n\n    genaim ") and found["command"] in text
    assert "model: tiny, weights " in text and "; 12 images of each point" in text
    assert "reference: photos, 30\n" in text and "features: cifar-resnet56, weights " in text
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) == 1 and f"**{min(values):.4g}**" in rows[0]
    assert Image.open(folder / "sweep.png").size[0] > 500
    again = genaim(*arguments)
    assert again.code == 0 and json.loads((folder / "sweep.json").read_text())["points"] == found["points"]
    assert [point["folder"] for point in found["points"]] == sorted(p.name for p in folder.iterdir() if p.is_dir())


def test_a_sweep_by_a_figure_that_is_not_measured_ends_at_the_first_point(genaim, model, photos, cifar_weights):
    extractor = ["--extractor", "cifar-resnet56", "--weights", cifar_weights]
    assert genaim("evaluate", "statistics", photos, "--out", "ref.npz", *extractor).code == 0
    wanted = [*SWEEP, "--model", model, "--reference", "ref.npz", *extractor]
    refused = genaim(*wanted, "--best-by", "recall", "--out", "points")
    assert refused.code == 2 and "--best-by recall is not among the figures of this measurement: fid" in refused.err
    assert [path.name for path in Path("points").iterdir()] == ["guidance1"]


@pytest.mark.parametrize(
    ("axis", "values", "told"),
    [
        ("steps", "inf", "--steps is inf; give finite numbers"),
        ("steps", "4,nan", "--steps is 4,nan; give finite numbers"),
        ("steps", "1.5", "--steps is 1.5; give whole numbers from 1 on"),
        ("guidance", "1,-inf", "--guidance is 1,-inf; give finite numbers"),
        ("guidance", "1.0000001,1.0000002", "--guidance has two values that folders and tables write as 1;"),
        ("temperature", "1,1.0", "--temperature has a value twice"),
    ],
)
def test_a_grid_is_refused_before_its_first_point(genaim, model, options, axis, values, told):
    done = genaim("evaluate", "sweep", "--model", model, f"--{axis}", values, "-n", 12, *options)
    assert (done.code, done.err.count("\n")) == (2, 1) and told in done.err, done.err
    assert not list(Path().iterdir())


BAD = {
    "too few images": (["-n", 9], "9 generated images (-n) are too few for the statistics"),
    "no images": (["--images", "photos"], "one of them"),
    "no such class": (["--classes", "cow"], "cow"),
    "empty class list": (["--classes", ""], "the list of classes is empty"),
    "unknown extractor": (["--extractor", "inceptoin"], "there is no extractor 'inceptoin'"),
    "no weights": (["--weights", "none.pth"], "there is no file 'none.pth'"),
    "unknown preset": (["--preset", "adn"], "there is no preset 'adn'"),
    "one resampling": (["--bootstrap", 1], "--bootstrap is 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(genaim, model, options, name):
    added, told = BAD[name]
    done = genaim("evaluate", "fid", "--model", model, "-n", 12, *options, *added)
    assert done.code == 2 and told in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
    assert not Path("evaluations").exists()


def test_references_that_do_not_fit_are_refused(genaim, model, options, photos, cifar_weights):
    base = ["evaluate", "fid", "--model", model, "-n", 12, "--extractor", "cifar-resnet56", "--weights", cifar_weights]
    np.savez("inception.npz", mu=np.zeros(64), sigma=np.eye(64))
    refused = genaim(*base, "--reference", "inception.npz")
    assert refused.code == 2 and "statistics of extractor 'inception-v3-compat'" in refused.err
    np.savez("large.npz", arr_0=np.zeros((12, 16, 16, 3), np.uint8))
    refused = genaim(*base, "--reference", "large.npz")
    assert (
        refused.code == 2
        and "images of 8x8 pixels, and reference 'large.npz' begins with an image of 16x16" in refused.err
    )
    refused = genaim(*base)
    assert refused.code == 2 and "give --data, or for FID --reference" in refused.err
    given = ["--extractor", "cifar-resnet56", "--weights", cifar_weights, "--reference", photos]
    refused = genaim("evaluate", "fid", "--images", "nowhere", *given)
    assert refused.code == 2 and "there is no 'nowhere'" in refused.err
    Path("broken").mkdir()
    Path("broken/a.png").write_text("no picture")
    refused = genaim("evaluate", "fid", "--images", "broken", *given)
    assert refused.code == 2 and "a.png' cannot be read" in refused.err
    refused = genaim("evaluate", "fid", "--images", photos, *given, "--weights", "broken/a.png")
    assert refused.code == 2 and "a.png' does not hold a CIFAR-10 ResNet-56" in refused.err


def test_another_config_of_the_same_weights_is_measured_anew(genaim, model, options, tmp_path):
    assert genaim("evaluate", "fid", "--model", model, "-n", 12, *options, "--out", "first").code == 0
    shutil.copytree(model, tmp_path / "changed")
    path = tmp_path / "changed" / "tokenizer" / "config.json"
    config = json.loads(path.read_text())
    config["tokenizer"]["residual_ratio"] = 0.9
    path.write_text(json.dumps(config))
    assert genaim("evaluate", "fid", "--model", tmp_path / "changed", "-n", 12, *options, "--out", "second").code == 0
    assert record("first")["figures"][0]["figures"]["fid"] != record("second")["figures"][0]["figures"]["fid"]


def test_records_of_other_versions_and_other_files_are_refused(genaim, model, options):
    Path("old.json").write_text(json.dumps({"format": "genaim evaluate 0"}))
    refused = genaim("evaluate", "replay", "old.json")
    assert refused.code == 2 and "version 'genaim evaluate 0', and this genaim reads 'genaim evaluate 3'" in refused.err
    Path("other.json").write_text("[1]")
    assert "is not a record of genaim evaluate" in genaim("evaluate", "replay", "other.json").err
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("precious")
    refused = genaim("evaluate", "fid", "--model", model, "-n", 12, *options, "--out", "mine")
    assert refused.code == 2 and "holds other files" in refused.err


def test_inception_without_network_is_one_line(genaim, model, photos, monkeypatch):
    from genaim.pretrained import download

    monkeypatch.setattr(download, "_receive", _no_network)
    done = genaim("evaluate", "fid", "--model", model, "-n", 12, "--reference", photos)
    assert done.code == 2 and "give the file of https://" in done.err and "by --weights" in done.err


def _no_network(*arguments: object) -> None:
    from genaim.pretrained.download import Unreachable

    raise Unreachable("no network")
