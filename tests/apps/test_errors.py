"""Bad input: one line that names it and what is allowed, exit status 2, nothing written."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from apps.errors import guarded
from genaim.pretrained import save_model
from tests.tiny import make_latents, make_model

ROOT = Path(__file__).parent.parent.parent


class RunsCode:
    """Unpickling this would write a file."""

    def __reduce__(self):
        return (Path.touch, (Path("code-was-run"),))


def refused(done, *fragments):
    """Asserts one line on standard error that holds the fragments, and exit status 2."""
    assert done.code == 2, (done.code, done.err)
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: ")
    for fragment in fragments:
        assert str(fragment) in done.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["sample", "--model", "emoji-vra"], ["'emoji-vra'", "neither bundled nor a folder"]),
        (["info", "emoji-vra"], ["'emoji-vra'"]),
        (["bench", "--model", "emoji-vra", "--repeats", "1"], ["'emoji-vra'"]),
        (["sample", "-n", "0"], ["-n is 0", "1 to 1,000,000 images"]),
        (["sample", "-n", "many"], ["-n"]),
        (["sample", "--batch-size", "0"], ["--batch-size is 0", "1 or more"]),
        (["sample", "--guidance", "nan"], ["--guidance is nan", "finite"]),
        (["sample", "--temperature", "inf"], ["--temperature is inf", "finite"]),
        (["sample", "--steps", "9" * 400], ["--steps is 999", "1 or more"]),
        (["sample", "--temperature", "-1"], ["--temperature is -1.0", "0 or more"]),
        (["sample", "--top-k", "-5"], ["--top-k is -5", "1 or more, or 0"]),
        (["sample", "--top-p", "1.5"], ["--top-p is 1.5", "at most 1"]),
        (["sample", "--top-p", "0"], ["--top-p is 0.0", "above 0"]),
        (["sample", "--diffusion-steps", "0"], ["--diffusion-steps is 0", "1 to 1000"]),
        (["sample", "--device", "cpu:abc"], ["no device 'cpu:abc'", "auto"]),
        (["sample", "--device", "tpu"], ["'tpu'", "auto, cpu, cuda or mps"]),
        (["sample", "--dtype", "float16"], ["'float16'", "float32 or bfloat16"]),
        (["sample", "--gidance", "2"], ["--gidance", "--guidance"]),
        (["sample", "--from-record", "missing.json"], ["missing.json", "No such file"]),
        (["sample", "--from-record", "missing.json", "--seed", "1"], ["'seed'", "leave that option out"]),
        (["smaple"], ["no such command 'smaple'; did you mean 'sample'? Allowed: sample, inpaint, "]),
        (["evaluate", "fidd"], ["no such command 'fidd'; did you mean 'fid'? Allowed: likelihood, "]),
        (["sample", "--guidance", "abc"], ["'--guidance': must be a valid number"]),
        (["train", "mnist-vq", "steps=0"], ["mnist-vq steps=0: key 'steps' is 0; it must be greater than 0."]),
        (["train", "emoji-vp"], ["'emoji-vp'", "did you mean 'emoji-v"]),
        (["train", "emoji-vp", "--keys"], ["'emoji-vp'"]),
    ],
)
def test_wrong_arguments(genaim, arguments, fragments, monkeypatch):
    monkeypatch.setenv("GENAIM_DATA", "data")  # recipes name it
    refused(genaim(*arguments), *fragments)


def test_wrong_options_waited_for_torch(tmp_path):
    """Each took seconds to be refused."""
    Image.new("RGB", (300, 200)).save(tmp_path / "picture.png")
    cases = [
        ["sample", "-n", "-3"],
        ["sample", "--top-p", "2"],
        ["sample", "--device", "tpu"],
        ["sample", "--dtype", "int8"],
        ["sample", "--model", "emoji-vra"],
        ["sample", "--model", "emoji-vq"],
        ["sample", "--model", "runs/x"],
        ["sample", "--out", "."],
        ["sample", "--from-record", "picture.png"],
        ["upscale", "missing.png"],
        ["upscale", "picture.png", "--factor", "4000"],
        ["inpaint", "picture.png"],
        ["inpaint", "picture.png", "--box", "1,2,3"],
        ["inpaint", "picture.png", "--mask", "missing.png"],
        ["outpaint", "picture.png"],
        ["outpaint", "picture.png", "--left", "400000000"],
        ["edit", "picture.png", "--class", "1", "-n", "0"],
        ["info", "emoji-vra"],
        ["train", "emoji-vp"],
        ["convert", "var", "missing.pth", "out"],
        ["demo", "--model", "emoji-vq"],
        ["demo", "--host", "192.0.2.1"],
        ["demo", "--port", "70000"],
    ]
    code = (
        "import json, sys\nfrom apps.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n        main(arguments)\n    except SystemExit as exit:\n"
        "        print(exit.code, 'torch' in sys.modules, *arguments)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cases)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"2 False {' '.join(case)}" for case in cases]
    assert done.stderr.count("\n") == len(cases)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--classes", "kat"], ["unknown class 'kat'", "did you mean 'Cat'?", "numbers 0 to 2"]),
        (["--classes", "3"], ["unknown class '3'", "numbers 0 to 2"]),
        (["--classes", "-1"], ["unknown class '-1'"]),
        (["--classes", "cat,"], ["unknown class ''"]),
        (["--out", "/dev/null/out"], ["/dev/null", "Not a directory"]),
    ],
)
def test_wrong_sampling_options(genaim, model, options, fragments):
    refused(genaim("sample", "--model", model, *options), *fragments)


@pytest.mark.parametrize(
    ("options", "fragments"), [(["--classes", "cat"], ["has no classes"]), (["--guidance", "2"], ["needs classes"])]
)
def test_an_unconditional_model_takes_no_classes(genaim, unconditional, options, fragments):
    refused(genaim("sample", "--model", unconditional, *options), *fragments)


@pytest.mark.parametrize(
    ("kind", "head", "arguments", "fragment"),
    [
        (
            "mar",
            "diffusion",
            ["sample", "--top-k", "5"],
            "takes no top-k; leave it out. It takes temperature, diffusion-",
        ),
        ("mar", "flow", ["sample", "--scheduler", "ddim"], "scheduler 'ddim' is for models that predict noise"),
        ("mar", "diffusion", ["sample", "--diffusion-steps", "1"], "diffusion steps of noise prediction must be 2 to"),
        (
            "causal",
            "mixture",
            ["sample", "--steps", "4"],
            "4 steps are asked for, but the order 'raster' always takes 16",
        ),
        ("causal", "mixture", ["sample", "--top-p", "0.5"], "a model with the head 'mixture' takes no top-p"),
        ("causal", "mixture", ["upscale", "picture.png"], "the model cannot enlarge pictures: it has no scales"),
        (
            "causal",
            "mixture",
            ["inpaint", "picture.png", "--box", "0,0,1,1", "--guidance", "2"],
            "guidance 2 needs a class",
        ),
    ],
)
def test_errors_named_internals(genaim, tmp_path, kind, head, arguments, fragment):
    """Such as num_steps and ScaleOrder, where people give --steps and know kinds of models, heads and orders."""
    save_model(tmp_path / "model", make_model(kind, make_latents(), head))
    Image.new("RGB", (8, 8)).save("picture.png")
    done = genaim(*arguments, "--model", tmp_path / "model")
    error = done.err.splitlines()[-1]
    assert done.code == 2 and fragment in error
    assert not re.search(r"\b[a-z]+_[a-z]+\b|[a-z](Order|Head|Generator)\b", error.replace("model.low_res", "")), error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu(genaim, model, recipe):
    refused(genaim("sample", "--model", model, "--device", "cuda"), "'cuda' is not available", "cpu")
    refused(genaim("train", recipe, "device=cuda"), "'cuda' is not available", "cpu")


@pytest.mark.parametrize(
    "case", ["empty", "truncated", "lost", "other shapes", "foreign", "not json", "run", "no weights"]
)
@pytest.mark.parametrize("command", [["sample", "--model"], ["info"]])
def test_an_unreadable_or_foreign_model(genaim, model, tmp_path, case, command):
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    names = folder
    if case == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif case == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        names = weights
    elif case == "lost":
        weights.unlink()
        names = weights
    elif case == "other shapes":
        shutil.copy(folder / "tokenizer" / "model.safetensors", weights)
    elif case == "foreign":
        config.write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}))
        names = config
    elif case == "not json":
        config.write_bytes(b"\x89PNG\r\n")
        names = config
    elif case == "run":
        config.unlink()
        (folder / "config.yaml").write_text("- someone\n- else\n")
        names = folder / "config.yaml"
    else:
        (folder / "tokenizer" / "model.safetensors").write_bytes(b"")
        names = folder / "tokenizer" / "model.safetensors"
    refused(genaim(*command, folder), names)


def test_a_pickle_is_refused_and_not_run(genaim, tmp_path):
    torch.save(RunsCode(), tmp_path / "model.pth")
    refused(genaim("sample", "--model", tmp_path / "model.pth"), tmp_path / "model.pth", "model folder")


def test_a_tokenizer_cannot_be_sampled(genaim, model):
    refused(genaim("sample", "--model", model / "tokenizer"), "is a tokenizer, not a generator", "mnist-var")


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["stepz=5"], ["unknown key 'stepz'", "did you mean 'steps'?"]),
        (["optimizer.lr_=1"], ["unknown key 'optimizer.lr_'", "did you mean 'lr'?"]),
        (["kind=generator", "tokenizer=x", "model={kind: mar, widht: 8}"], ["unknown key 'model.widht'", "'width'"]),
        (["steps=few"], ["'steps'", "few"]),
        (["steps=0"], ["'steps'", "greater than 0"]),
        (["steps"], ["'steps'", "key=value"]),
        (["data=[1"], ["data=[1", "not valid YAML"]),
        (["kind=picture"], ["'kind' is 'picture'", "tokenizer"]),
        (["kind=tokeniser"], ["did you mean 'tokenizer'?"]),
        (["tokenizer.patch_nums=[1,2,3]"], ["patch_nums ends at 3", "data.image_size is 8"]),
        (["tokenizer.patch_nums=[4,2]"], ["patch_nums [4, 2]"]),
        (["data.train.path=nowhere"], ["'nowhere' does not exist"]),
    ],
)
def test_wrong_recipes(genaim, recipe, overrides, fragments):
    refused(genaim("train", recipe, *overrides), *fragments)


def test_a_recipe_that_is_not_yaml(genaim, tmp_path):
    (tmp_path / "broken.yaml").write_text("steps: [1\n")
    refused(genaim("train", tmp_path / "broken.yaml"), "broken.yaml", "not valid YAML")


def test_an_empty_folder_of_images(genaim, recipe, tmp_path):
    (tmp_path / "none").mkdir()
    done = genaim("train", recipe, f"data.train.path={tmp_path / 'none'}")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "holds no images" in done.err
    assert list(Path().iterdir()) == []


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\nlines"), 2, "error: two lines"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.png"),
            2,
            "error: 'x.png': No such file or directory",
        ),
        (SafetensorError("I/O error: No space left on device"), 2, "error: I/O error: No space left on device"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            2,
            "error: the machine's memory is full; use a smaller batch size.",
        ),
        (
            RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            2,
            "error: the machine's memory is full; use a smaller batch size.",
        ),
        (
            RuntimeError("shapes differ"),
            1,
            "error: internal error, RuntimeError: shapes differ (GENAIM_TRACEBACK=1 shows where; please report it)",
        ),
        (KeyError("x"), 1, "error: internal error, KeyError: 'x' (GENAIM_TRACEBACK=1 shows where; please report it)"),
    ],
)
def test_every_error_is_one_line(capsys, monkeypatch, error, code, line):
    monkeypatch.delenv("GENAIM_TRACEBACK", raising=False)
    assert guarded(raising(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_the_traceback_is_there_when_wanted(monkeypatch):
    monkeypatch.setenv("GENAIM_TRACEBACK", "1")
    with pytest.raises(KeyError):
        guarded(raising(KeyError("x")))
