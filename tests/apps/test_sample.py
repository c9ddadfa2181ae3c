"""`genaim sample`: pictures, the record that repeats them, and the folder they are in."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import apps.sample
from apps.folders import read_record, written_whole
from genaim.pretrained import load_generator, save_model
from tests.tiny import make_latents, make_model

ROOT = Path(__file__).parent.parent.parent


def pixels(folder: Path) -> np.ndarray:
    """Pictures of a folder in order, (n, H, W, 3)."""
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("0*.png"))]).astype(float)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.png")}


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    """Equal tokens leave rounding alone: 40 dB, DESIGN.md's rule."""
    assert a.shape == b.shape
    error = np.square((a - b) / 255).mean(axis=(1, 2, 3)).max()
    assert error < 1e-4


def test_writes_pictures_sheet_and_record(genaim, model):
    done = genaim("sample", "--model", model, "-n", 5, "--out", "here")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "here/sheet.png"
    folder = Path("here")
    assert sorted(p.name for p in folder.iterdir()) == [*(f"{i:05d}.png" for i in range(5)), "record.json", "sheet.png"]
    assert pixels(folder).shape == (5, 8, 8, 3)
    assert "5 images, seed 0, guidance 1.5" in done.err
    assert "on cpu in " in done.err
    record = read_record(folder / "record.json")
    assert record["settings"]["labels"] == [0, 1, 2, 0, 1]
    assert record["settings"]["names"][2] == "Fish, tropical"
    options = {name: value for name, value in record["settings"]["options"].items() if value is not None}
    assert options == {"temperature": 1.0, "top_k": 20}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_picture_depends_neither_on_batch_size_nor_on_count(genaim, model):
    for out, options in {"1": ["--batch-size", 1], "3": ["--batch-size", 3], "16": [], "few": ["-n", 3]}.items():
        assert genaim("sample", "--model", model, "-n", 7, "--dtype", "float32", "--out", out, *options).code == 0
    assert_close(pixels(Path("1")), pixels(Path("3")))
    assert_close(pixels(Path("1")), pixels(Path("16")))
    assert_close(pixels(Path("1"))[:3], pixels(Path("few")))
    assert len({p.tobytes() for p in pixels(Path("1"))}) == 7


def test_record_and_its_command_repeat_the_pictures(genaim, model):
    asked = ["--classes", "dog,2", "--seed", -3, "--guidance", 2, "--temperature", 0.9, "--top-k", 0, "--top-p", 0.8]
    genaim("sample", "--model", model, "-n", 5, "--batch-size", 2, *asked, "--out", "first")
    done = genaim("sample", "--from-record", "first/record.json", "--out", "second")
    assert "5 of 5 pictures are identical to the record's" in done.out
    assert content(Path("first")) == content(Path("second"))
    record = read_record(Path("first/record.json"))
    command = shlex.split(record["command"])
    assert command[0] == "genaim"
    genaim(*command[1:], "--out", "third")
    assert content(Path("first")) == content(Path("third"))
    assert read_record(Path("third/record.json"))["settings"] == record["settings"]


def test_a_record_of_an_unconditional_model_repeats(genaim, unconditional):
    genaim("sample", "--model", unconditional, "-n", 2, "--out", "first")
    assert "2 of 2" in genaim("sample", "--from-record", "first/record.json", "--out", "second").out


def test_a_damaged_record_is_told(genaim, model):
    genaim("sample", "--model", model, "-n", 1, "--out", "first")
    record = json.loads(Path("first/record.json").read_text())
    record["settings"]["count"] = "x"
    Path("first/record.json").write_text(json.dumps(record))
    done = genaim("sample", "--from-record", "first/record.json")
    assert done.code == 2 and "is not a whole record" in done.err


def test_a_record_wants_the_weights_it_was_made_with(genaim, model, tmp_path):
    changed = load_generator(str(model))
    save_model(tmp_path / "copy", changed)
    genaim("sample", "--model", tmp_path / "copy", "-n", 1, "--out", "out")
    changed.head.linear.bias.data += 1
    save_model(tmp_path / "copy", changed)
    done = genaim("sample", "--from-record", "out/record.json", "--out", "again")
    assert done.code == 2
    assert "but the record was made with" in done.err
    assert not Path("again").exists()


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        (["--classes", "cat,FISH, tropical"], None),
        (["--classes", "CAT"], [0, 0, 0, 0]),
        (["--classes", "dog,cat"], [1, 0, 1, 0]),
        (["--classes", "Fish, tropical", "--classes", "1"], [2, 1, 2, 1]),
        (["--classes", "2, dog"], [2, 1, 2, 1]),
        ([], [0, 1, 2, 0]),
    ],
)
def test_classes_are_given_in_turn_by_name_or_number(genaim, model, asked, labels):
    done = genaim("sample", "--model", model, "-n", 4, *asked, "--out", "out")
    if labels is None:
        assert done.code == 2
        assert "unknown class 'FISH'; Allowed: Cat, Dog, Fish, tropical" in done.err
        assert "numbers 0 to 2" in done.err
    else:
        assert read_record(Path("out/record.json"))["settings"]["labels"] == labels


def test_options_change_the_pictures(genaim, model):
    for out, options in {"a": [], "b": ["--guidance", 1], "c": ["--temperature", 0.1], "d": ["--seed", 1]}.items():
        genaim("sample", "--model", model, "-n", 3, *options, "--out", out)
    assert len({pixels(Path(out)).tobytes() for out in "abcd"}) == 4


# Folders


def test_the_same_command_writes_its_folder_again_and_another_takes_the_next(genaim, model):
    assert genaim("sample", "--model", model, "-n", 1).out.splitlines()[-1] == "samples/tiny-seed0/sheet.png"
    assert genaim("sample", "--model", model, "-n", 1).out.splitlines()[-1] == "samples/tiny-seed0/sheet.png"
    again = genaim("sample", "--model", model, "-n", 2)
    assert again.out.splitlines()[-1] == "samples/tiny-seed0-2/sheet.png"
    assert sorted(p.name for p in Path("samples").iterdir()) == ["tiny-seed0", "tiny-seed0-2"]


def test_an_explicit_folder_of_ours_is_replaced_whole(genaim, model):
    genaim("sample", "--model", model, "-n", 3, "--out", "out")
    assert genaim("sample", "--model", model, "-n", 1, "--out", "out").code == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["00000.png", "record.json", "sheet.png"]


@pytest.mark.parametrize("case", ["other files", "a note", "a changed picture", "a file", "a foreign record"])
def test_files_of_the_user_are_never_lost(genaim, model, case):
    out = Path("out")
    if case in ("a note", "a changed picture"):
        genaim("sample", "--model", model, "-n", 1, "--out", out)
    files = {
        "other files": out / "photo.png",
        "a note": out / "note.txt",
        "a changed picture": out / "00000.png",
        "a file": out,
        "a foreign record": out / "record.json",
    }
    files[case].parent.mkdir(exist_ok=True)
    files[case].write_text("{}")
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    done = genaim("sample", "--model", model, "-n", 1, "--out", out)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert files[case].name in done.err
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


def test_a_full_disk_leaves_nothing_half_written(genaim, model, monkeypatch):
    genaim("sample", "--model", model, "-n", 1, "--out", "kept")
    before = content(Path("kept"))
    save = Image.Image.save

    def full(self, target, *args, **kwargs):
        if Path(target).name == "00002.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, target, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    for out in ("kept", "new/deeper"):
        done = genaim("sample", "--model", model, "-n", 5, "--out", out)
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith("error: ")
        assert "No space left on device; nothing was written" in done.err
        assert out in done.err
    assert [p.name for p in Path().iterdir()] == ["kept"]
    assert content(Path("kept")) == before


def test_ctrl_c_leaves_nothing_half_written(genaim, model, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(apps.sample, "sheet", interrupted)
    done = genaim("sample", "--model", model, "-n", 2, "--out", "out")
    assert done.code == 130
    assert done.err.splitlines()[-1] == "interrupted"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_process_removes_what_it_wrote(model, tmp_path, number, code):
    command = [sys.executable, "-m", "apps.cli", "sample", "--model", str(model), "-n", "100000", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in a shell's background ignores it
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True, preexec_fn=heeded
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.tmp-*/00000.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_folder_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    replace, calls = os.replace, []

    def fails_once(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OSError, match="nothing was written"), written_whole(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").iterdir())


def test_steps_and_scheduler_reach_the_model_and_the_record(genaim, tmp_path):
    model = make_model("mar", make_latents(), "diffusion")
    save_model(tmp_path / "mar", model)
    options = ("--steps", 3, "--diffusion-steps", 6, "--scheduler", "ddim", "--dtype", "float32")
    done = genaim("sample", "--model", tmp_path / "mar", "-n", 2, *options)
    assert done.code == 0, done.err
    record = read_record(Path("samples/mar-seed0/record.json"))
    assert record["settings"]["num_steps"] == 3
    assert record["settings"]["options"]["diffusion_steps"] == 6
    assert all(words in record["command"] for words in ("--steps 3", "--diffusion-steps 6", "--scheduler ddim"))
    again = genaim("sample", "--from-record", "samples/mar-seed0/record.json", "--out", "again")
    assert "2 of 2 pictures are identical" in again.out

    other = genaim("sample", "--model", tmp_path / "mar", "-n", 2, "--dtype", "float32", "--out", "other")
    assert other.code == 0
    assert Path("other/00000.png").read_bytes() != Path("again/00000.png").read_bytes()


def test_a_default_scheduler_can_be_switched_back(genaim, tmp_path):
    for name, sampling in (("plain", {}), ("fast", {"scheduler": "ddim"})):
        save_model(tmp_path / name, make_model("mar", make_latents(), "diffusion", sampling=sampling))
    pictures = []
    for name, options in (("plain", ()), ("fast", ()), ("fast", ("--scheduler", "own"))):
        out = f"out{len(pictures)}"
        done = genaim("sample", "--model", tmp_path / name, "-n", 1, "--dtype", "float32", "--out", out, *options)
        assert done.code == 0, done.err
        pictures.append(Path(out, "00000.png").read_bytes())
    assert pictures[2] == pictures[0] != pictures[1]
    assert "--scheduler own" in read_record(Path("out2/record.json"))["command"]
    again = genaim("sample", "--from-record", "out2/record.json", "--out", "again")
    assert "1 of 1 pictures are identical" in again.out


def test_steps_that_a_model_cannot_take_are_refused(genaim, model):
    for option, message in (
        (("--steps", 0), "--steps is 0; it must be 1 or more"),
        (("--steps", 7), "7 steps are asked for, but the order 'scales' always takes 3"),
        (
            ("--scheduler", "ddim"),
            "head 'categorical' takes no scheduler; leave it out. It takes temperature, top-k, top-p.",
        ),
        (("--diffusion-steps", 0), "--diffusion-steps is 0; it must be 1 to 1000"),
    ):
        done = genaim("sample", "--model", model, *option)
        assert done.code == 2 and message in done.err.splitlines()[-1]
        assert not list(Path().rglob("*.png"))
