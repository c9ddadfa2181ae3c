"""`genaim train`: from images to a model that can be sampled."""

import os
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from apps.progress import StreamProgress
from genaim.training import checkpoint


def weights(run):
    """Averaged weights of a run's newest checkpoint."""
    return load_file(sorted(run.glob("checkpoints/step-*/ema.safetensors"))[-1])


def test_images_to_tokenizer_to_generator_to_pictures(genaim, recipe, tmp_path):
    done = genaim("train", recipe)
    assert done.code == 0, done.err
    assert "squares-vq: training a tokenizer, 6 steps of 4 images, on cpu in float32" in done.out
    assert "squares-vq 6/6  loss " in done.out
    next_step = "train a generator over it with: genaim train RECIPE tokenizer=runs/squares-vq"
    assert done.out.splitlines()[-2:] == ["trained: runs/squares-vq", next_step]
    text = recipe.read_text().replace("squares-vq", "squares-var").replace("kind: tokenizer", "kind: generator")
    lines = [line for line in text.splitlines() if not line.startswith("tokenizer:")]
    generator = tmp_path / "squares-var.yaml"
    model = "{kind: var, depth: 2, width: 32, num_heads: 2}"
    generator.write_text("\n".join([*lines, "tokenizer: runs/squares-vq", f"model: {model}", ""]))
    done = genaim("train", generator, "steps=3")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "look at it with: genaim sample --model runs/squares-var"
    done = genaim("sample", "--model", "runs/squares-var", "--classes", "red", "-n", 2)
    assert done.out.splitlines()[-1] == "samples/squares-var-seed0/sheet.png"
    shown = genaim("info", "runs/squares-var").out
    assert "2: 0 blue, 1 red" in shown
    assert "8x8, 21 tokens each" in shown


def test_a_finished_tokenizer_named_no_next_step(genaim, recipe, tmp_path):
    done = genaim("train", recipe, "name=emoji-vq", "steps=1", f"folder={tmp_path / 'my runs'}")
    assert done.code == 0, done.err
    command = f"genaim train emoji-var 'tokenizer={tmp_path}/my runs/emoji-vq'"
    assert done.out.splitlines()[-1] == f"train a generator over it with: {command}"


def test_images_to_encoder_to_features(genaim, recipe, tmp_path):
    text = recipe.read_text().replace("squares-vq", "squares-aim").replace("kind: tokenizer", "kind: encoder")
    lines = [line for line in text.splitlines() if not line.startswith("tokenizer:")]
    encoder = tmp_path / "squares-aim.yaml"
    model = "{image_size: 8, patch_size: 2, depth: 2, width: 16, num_heads: 2, head_depth: 1, head_width: 8}"
    encoder.write_text("\n".join([*lines, f"model: {model}", ""]))
    done = genaim("train", encoder)
    assert done.code == 0, done.err
    assert "squares-aim: training an encoder, 6 steps of 4 images, on cpu in float32" in done.out
    assert (
        done.out.splitlines()[-1] == "use it with: genaim.pretrained.load_encoder('runs/squares-aim').features(images)"
    )
    shown = genaim("info", "runs/squares-aim").out
    for words in ("runs/squares-aim, aim encoder", "8x8, 16 tokens each", "pixel_head", "order: raster"):
        assert words in shown
    done = genaim("sample", "--model", "runs/squares-aim")
    assert done.code == 2
    assert "is an encoder, not a generator" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_ends_the_same(genaim, recipe, monkeypatch, number):
    advance = StreamProgress.advance

    def stop_at_3(self, done, figures):
        if done == 3:
            os.kill(os.getpid(), number)
        advance(self, done, figures)

    genaim("train", recipe, "name=whole")
    with monkeypatch.context() as patch:
        patch.setattr(StreamProgress, "advance", stop_at_3)
        stopped = genaim("train", recipe, "name=parts")
    assert stopped.code == 130
    assert stopped.err.count("\n") == 1
    assert "run the same command to go on" in stopped.err
    assert f"genaim train {recipe} name=parts" in stopped.err
    resumed = genaim("train", recipe, "name=parts")
    assert resumed.code == 0
    assert "continuing runs/parts after step 4 of 6" in resumed.out
    whole, parts = weights(Path("runs/whole")), weights(Path("runs/parts"))
    assert whole.keys() == parts.keys()
    assert all(bool((whole[name] == parts[name]).all()) for name in whole)


def test_a_folder_with_another_run_is_refused(genaim, recipe):
    assert genaim("train", recipe, "steps=1").code == 0
    done = genaim("train", recipe, "batch_size=2")
    assert done.code == 2
    assert "another 'batch_size'" in done.err or "another 'steps'" in done.err
    assert done.err.count("\n") == 1


def test_a_full_disk_names_the_run_and_keeps_its_checkpoint(genaim, recipe, monkeypatch):
    save = checkpoint.save_file

    def full(tensors, path):
        if "00000004" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        done = genaim("train", recipe, "save_every=2")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "runs/squares-vq/checkpoints/step-00000004 cannot be written" in done.err
    assert "No space left on device" in done.err
    resumed = genaim("train", recipe, "save_every=2")
    assert "continuing runs/squares-vq after step 2 of 6" in resumed.out
    assert resumed.code == 0
