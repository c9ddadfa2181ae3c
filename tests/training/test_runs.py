"""Runs end where they should: resumed as uninterrupted, two processes as one, bad losses with an error."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from genaim.data import DataConfig, build_dataset
from genaim.data.transforms import resize_images, tensor_to_levels
from genaim.models import GenerativeModel
from genaim.pretrained import from_pretrained, load_encoder, load_generator, load_tokenizer, save_model
from genaim.training.checkpoint import checkpoints, load_checkpoint
from genaim.training.config import parse_run
from genaim.training.run import train
from genaim.training.trainer import Interrupted
from tests.tiny import merge
from tests.training.runs import StopAt, make_images, make_tokenizer, recipe, start

ROOT = Path(__file__).parents[2]
TRICKY: dict[str, Any] = {
    "tokenizer": {"codebook": {"size": 16, "update": "ema", "revive_below": 0.2, "rotation": True}}
}
ADVERSARIAL: dict[str, Any] = {
    "loss": {"adversarial": 0.1, "adversarial_start": 2, "discriminator_channels": 8},
    "tokenizer": {"patch_nums": [1, 2, 8]},
    "data": {"image_size": 32},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenizer": ("tokenizer", {}),
    "tokenizer_ema_codebook": ("tokenizer", TRICKY),
    "tokenizer_adversarial": ("tokenizer", ADVERSARIAL),
    "generator": ("generator", {}),
    "generator_dropout": ("generator", {"model": {"dropout": 0.1, "code_temperature": 0.01}}),
    "generator_low_res": ("generator", {"model": {"low_res": 4}, "data": {"flip": True}, "views": 2}),
    "encoder": ("encoder", {"model": {"order": "spiral"}}),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_images(tmp_path / "images")
    make_tokenizer(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the newest checkpoint, without the time that it took."""
    files = {p.name: p.read_bytes() for p in checkpoints(folder)[-1].iterdir()}
    state = json.loads(files.pop("state.json"))
    assert state.pop("seconds") > 0
    return files | {"state.json": json.dumps(state).encode()}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind: str, root: Path) -> None:
    """Bit for bit: weights, EMA, optimiser, adversary. The crash comes between checkpoints."""
    name, changes = KINDS[kind]
    whole, _ = start(recipe(root, name, name="whole", **changes))
    parts = recipe(root, name, name="parts", **changes)
    for stop_at in (1, 3, 5):
        with pytest.raises(RuntimeError, match="crash"):
            start(parts, stop_at)
    resumed, progress = start(parts)
    assert any("continuing" in line and "after step 4 of 6" in line for line in progress.lines)
    assert contents(whole) == contents(resumed)
    rows = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_killed_three_times(root: Path) -> None:
    """SIGKILL at any moment leaves a run that ends in the same weights."""
    whole, _ = start(recipe(root, "generator", name="whole", steps=40, validate_every=50))
    config = root / "run.json"
    config.write_text(json.dumps(recipe(root, "generator", name="killed", steps=40, validate_every=50)))
    command = [sys.executable, "-m", "tests.training.runs", str(config)]
    folder = root / "runs" / "killed"
    for kill in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        wanted = 4 * (kill + 1)
        while process.poll() is None and not any(int(p.name[5:]) >= wanted for p in checkpoints(folder)):
            time.sleep(0.002)
        time.sleep(0.003 * kill)  # somewhere in the next steps, or in the middle of a checkpoint
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert contents(whole) == contents(folder)


@pytest.mark.parametrize("kind", ["generator", "tokenizer_ema_codebook", "encoder"])
def test_two_processes_equal_one(kind: str, root: Path) -> None:
    """The same global batch gives the same weights within float tolerance, also with accumulation."""
    name, changes = KINDS[kind]
    one, _ = start(recipe(root, name, name="one", **changes))
    config = root / "run.json"
    config.write_text(json.dumps(recipe(root, name, name="two", accumulate=2, **changes)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "tests.training.runs", str(config)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    tensors = [load_checkpoint(checkpoints(folder)[-1])[0] for folder in (one, root / "runs" / "two")]
    for stem in ("weights", "ema"):
        for key, expected in tensors[0][stem].items():
            torch.testing.assert_close(tensors[1][stem][key], expected, rtol=1e-3, atol=2e-5, msg=f"{stem} {key}")
    figures = [last_figures(folder) for folder in (one, root / "runs" / "two")]
    assert figures[0].keys() == figures[1].keys()
    for key, value in figures[0].items():
        if "second" not in key:
            assert figures[1][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_a_process_without_validation_images(root: Path) -> None:
    """Fewer images than processes fill: one process has no batch, and the figures are those of the other."""
    few = {"data": {"val": {"path": str(root / "images"), "limit": 3}}}
    one, _ = start(recipe(root, "tokenizer", name="one", steps=3, **few))
    config = root / "run.json"
    config.write_text(json.dumps(recipe(root, "tokenizer", name="two", steps=3, **few)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, "-m", "tests.training.runs", str(config)], cwd=ROOT, check=True, capture_output=True)
    figures = [last_figures(folder)["val/psnr"] for folder in (one, root / "runs" / "two")]
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)


def last_figures(folder: Path) -> dict[str, float]:
    """Training and validation figures of the last step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {k: v for row in rows[-2:] for k, v in row.items()}


@pytest.mark.parametrize("last", [4, 2])
def test_a_signal_while_pictures_are_drawn_ends_them_and_saves(last: int, root: Path) -> None:
    def drawn_for_minutes(*arguments: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heeded")

    config = recipe(root, "generator", steps=last, validate_every=2, save_every=100)
    with nullcontext() if last == 2 else pytest.raises(Interrupted, match="stopped after step 3 of 4"):
        start(config, sample_fn=drawn_for_minutes)
    folder = root / "runs" / "generator"
    assert [p.name for p in checkpoints(folder)] == [f"step-{min(3, last):08d}"]
    start(config)
    whole, _ = start(recipe(root, "generator", name="whole", steps=last, validate_every=2, save_every=100))
    assert contents(whole) == contents(folder)
    assert not list(folder.glob("pictures/*"))


def test_a_stop_that_is_asked_for_leaves_the_pictures_out(root: Path) -> None:
    class Signalling(StopAt):
        def advance(self, done: int, figures: Any) -> None:
            if done == 2 and "loss" in figures:  # before the validation of step 2
                os.kill(os.getpid(), signal.SIGTERM)

    def drawn(*arguments: Any) -> torch.Tensor:
        raise AssertionError("drawn after the request to stop")

    run = parse_run(recipe(root, "generator", validate_every=2, save_every=100), "test")
    with pytest.raises(Interrupted, match="stopped after step 3 of 6"):
        train(
            run, Signalling(None), tokenizer=load_tokenizer(run.tokenizer), store_tokenizer=save_model, sample_fn=drawn
        )


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ""])
def test_a_run_stays_in_its_folder(name: str, root: Path) -> None:
    with pytest.raises(ValueError, match="give a name without slashes, and choose folder="):
        start(recipe(root, "generator", name=name))


def test_a_model_to_start_from_that_is_not_there_is_told_with_its_key(root: Path) -> None:
    run = parse_run(recipe(root, "generator", init="runs/emoji-vq"), "test")
    with pytest.raises(ValueError, match=r"init: there is no folder 'runs/emoji-vq'; .* \(init=null starts"):
        train(run, StopAt(None), tokenizer=load_tokenizer(run.tokenizer), load_model=load_generator)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, root: Path) -> None:
    config = recipe(root, "generator", save_every=100)

    from tests.training import runs

    class Signalling(runs.StopAt):
        def advance(self, done: int, figures: Any) -> None:
            if done == 3 and "loss" in figures:
                os.kill(os.getpid(), number)

    before = runs.StopAt
    runs.StopAt = Signalling
    try:
        with pytest.raises(Interrupted, match="stopped after step 4 of 6; run the same command to go on"):
            start(config)
    finally:
        runs.StopAt = before
    folder = root / "runs" / "generator"
    assert [p.name for p in checkpoints(folder)] == ["step-00000004"]
    start(config)
    whole, _ = start(recipe(root, "generator", name="whole", save_every=100))
    assert contents(whole) == contents(folder)


def test_a_loss_that_is_not_finite_stops_the_run(root: Path) -> None:
    config = recipe(root, "tokenizer", optimizer={"lr": 1e30, "warmup_steps": 0, "clip_norm": None})
    with pytest.raises(ValueError, match=r"step 2: the loss is (nan|inf).*lower optimizer\.lr"):
        start(config)
    assert not checkpoints(root / "runs" / "tokenizer")


def test_its_remedy_works(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has saved nothing may start again with another recipe; its weights start another run, once it has."""
    with pytest.raises(ValueError, match="saving: lower optimizer"):
        start(recipe(root, "tokenizer", optimizer={"lr": 1e30, "warmup_steps": 0, "clip_norm": None}))
    monkeypatch.setattr("genaim.training.trainer.learning_rate", lambda c, step, steps: c.lr if step < 2 else 1e30)
    diverging = recipe(root, "tokenizer", optimizer={"clip_norm": None}, validate_every=9)
    with pytest.raises(ValueError, match=r"lower optimizer\.lr in a run .*: choose another name= and init=") as error:
        start(diverging)
    monkeypatch.undo()
    init = str(error.value).rsplit("init=", 1)[1].rstrip(".")
    config = parse_run(recipe(root, "tokenizer", name="lower", optimizer={"lr": 1e-3}, init=init), "test")
    train(config, StopAt(None), store_tokenizer=save_model, load_model=from_pretrained)


def test_one_process_at_a_time_trains_in_a_folder(root: Path) -> None:
    """A second one removed the checkpoint that the first was writing. The lock ends with a killed process, too."""
    config, folder = recipe(root, "tokenizer"), root / "runs" / "tokenizer"
    hold = f"from genaim.training.run_folder import *\nwith alone(Path({str(folder)!r})): print(flush=True); input()"
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        (folder / "checkpoints" / ".tmp-00000002").mkdir(parents=True)
        with pytest.raises(ValueError, match="tokenizer is being trained by another process; wait") as error:
            start(config)
        assert "\n" not in str(error.value)
        assert [p.name for p in (folder / "checkpoints").iterdir()] == [".tmp-00000002"]
        other.kill()
    with pytest.raises(RuntimeError, match="crash"):
        start(config, 3)
    start(config)
    assert load_tokenizer(str(folder)).num_tokens == 21


def test_only_two_checkpoints_are_kept_and_no_temporary_one(root: Path) -> None:
    folder, _ = start(recipe(root, "tokenizer"))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_a_half_written_checkpoint_is_ignored(root: Path) -> None:
    folder, _ = start(recipe(root, "tokenizer"))
    expected = contents(folder)
    (folder / "checkpoints" / ".tmp-00000008").mkdir()
    broken = folder / "checkpoints" / "step-00000008"
    broken.mkdir()
    (broken / "weights.safetensors").write_bytes(b"half")
    assert contents(folder) == expected
    start(recipe(root, "tokenizer"))  # finds nothing to do
    assert contents(folder) == expected


def test_another_recipe_does_not_continue_a_run(root: Path) -> None:
    start(recipe(root, "tokenizer"))
    wanted = r"holds a run with another 'optimizer\.lr' \(0\.002, now 0\.0005\); choose another name= \(init="
    with pytest.raises(ValueError, match=wanted):
        start(recipe(root, "tokenizer", optimizer={"lr": 5e-4, "warmup_steps": 2}))


def test_what_changes_no_weights_may_change_in_a_run(root: Path) -> None:
    """Bit for bit: the data are moved, and validations and checkpoints come at other steps."""
    whole, _ = start(recipe(root, "generator", name="whole"))
    parts = recipe(root, "generator", name="parts")
    with pytest.raises(RuntimeError, match="crash"):
        start(parts, 3)
    (root / "images").rename(root / "moved")
    moved = {"train": {"path": str(root / "moved")}, "val": {"path": str(root / "moved")}}
    other = {"data": {**moved, "max_bad_share": 0.5}, "validate_every": 1, "save_every": 5, "log_every": 4}
    resumed, progress = start(merge(parts, other))
    assert any("continuing" in line for line in progress.lines)
    assert contents(whole) == contents(resumed)
    stored = yaml.safe_load((resumed / "config.yaml").read_text())
    assert (stored["data"]["train"][0]["path"], stored["log_every"]) == (str(root / "moved"), 4)
    make_images(root / "other", 23)
    different = {"data": moved | {"train": {"path": str(root / "other")}}}
    with pytest.raises(ValueError, match=r"another 'data\.train\.0\.path' \('.*moved', now '.*other'\)"):
        start(merge(parts, different))


def test_what_changes_the_rounding_alone_may_change_in_a_run(root: Path) -> None:
    whole, _ = start(recipe(root, "generator", name="whole"))
    with pytest.raises(RuntimeError, match="crash"):
        start(recipe(root, "generator"), 3)
    folder, _ = start(recipe(root, "generator", accumulate=2, model={"gradient_checkpointing": True}))
    expected, got = (load_checkpoint(checkpoints(f)[-1])[0]["weights"] for f in (whole, folder))
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-3, atol=2e-5, msg=name)


def test_a_run_with_a_constant_learning_rate_can_be_lengthened(root: Path) -> None:
    """Bit for bit as one that was longer from its start; the cosine would be another one."""
    constant = {"optimizer": {"schedule": "constant"}}
    whole, _ = start(recipe(root, "tokenizer", name="whole", **constant))
    start(recipe(root, "tokenizer", steps=3, **constant))
    folder, _ = start(recipe(root, "tokenizer", **constant))
    assert contents(whole) == contents(folder)
    with pytest.raises(ValueError, match=r"another 'steps' \(6, now 4\), of which 6 are done"):
        start(recipe(root, "tokenizer", steps=4, **constant))
    start(recipe(root, "tokenizer", name="cosine", steps=3))
    with pytest.raises(ValueError, match=r"another 'steps' \(3, now 6\), which the learning rate of schedule=cosine"):
        start(recipe(root, "tokenizer", name="cosine"))


def test_a_key_that_is_younger_than_a_run_does_not_stop_it(root: Path) -> None:
    """Every new key with a default made older runs those of another recipe."""
    folder, _ = start(recipe(root, "generator"))
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    del stored["data"]["train"][0]["num_images"], stored["views"]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    start(recipe(root, "generator"))
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    stored["data"]["train"][0]["key_of_the_past"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match=r"another 'data\.train\.0\.key_of_the_past' \(1, now None\)"):
        start(recipe(root, "generator"))


def test_run_folders_rebuild_their_models(root: Path) -> None:
    """From the folder alone: the tokenizer's own folder is gone."""
    folder, _ = start(recipe(root, "generator"))
    for path in (root / "tokenizer").iterdir():
        path.unlink()
    model = load_generator(str(folder))
    assert model.config.class_names == ("above", "below")
    ema = load_file(checkpoints(folder)[-1] / "ema.safetensors")
    weights = model.state_dict()
    assert all(weights[name].equal(average) for name, average in ema.items())
    tokenizer, _ = start(recipe(root, "tokenizer"))
    assert load_tokenizer(str(tokenizer)).num_tokens == 21
    folder, _ = start(recipe(root, "encoder"))
    weights = load_encoder(str(folder)).state_dict()
    ema = load_file(checkpoints(folder)[-1] / "ema.safetensors")
    assert ema.keys() == weights.keys()
    assert all(weights[name].equal(average) for name, average in ema.items())


def test_validation_reports_scales_and_pictures(root: Path) -> None:
    folder, _ = start(recipe(root, "tokenizer"))
    figures = last_figures(folder)
    assert {"val/psnr", "val/usage_scale_1", "val/perplexity_scale_3", "val/perplexity_all"} <= figures.keys()
    assert (folder / "pictures" / "step-00000006.png").stat().st_size > 0
    generator, _ = start(recipe(root, "generator"))
    figures = last_figures(generator)
    sizes = [1, 4, 16]
    mean = sum(size * figures[f"val/scale_{k + 1}"] for k, size in enumerate(sizes)) / sum(sizes)
    assert figures["val/loss"] == pytest.approx(mean, rel=1e-4)


def test_an_encoder_is_validated_alike_at_every_step(root: Path) -> None:
    """The prefix of a validation image is drawn once for all: a model that does not change has one loss."""
    folder, _ = start(recipe(root, "encoder", steps=6, optimizer={"lr": 1e-30, "weight_decay": 0.0}))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
    assert losses.keys() == {3, 6}
    assert losses[3] == losses[6]
    assert (folder / "pictures" / "step-00000006.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"image_size": 8}, "model.image_size is 8, but data.image_size is 16; make them equal"),
        ({"head_depth": None}, "pre-training needs a pixel head"),
    ],
)
def test_an_encoder_that_cannot_be_trained_so(model: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        start(recipe(root, "encoder", model=model))


def test_a_full_disk_keeps_the_last_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import genaim.training.checkpoint as checkpoint

    save_file, saved = checkpoint.save_file, []

    def full(tensors: Any, path: Path) -> None:
        saved.append(path)
        if len(saved) > 4:  # in the middle of the second checkpoint
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ValueError, match=r"step-00000004 cannot be written .*No space left.*is kept") as error:
        start(recipe(root, "tokenizer"))
    assert "\n" not in str(error.value)
    folder = root / "runs" / "tokenizer" / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-00000002"]


def test_labelled_images_can_train_without_classes(root: Path) -> None:
    folder, _ = start(recipe(root, "generator", model={"num_classes": 0}))
    assert load_generator(str(folder)).config.num_classes == 0
    with pytest.raises(ValueError, match="num_classes is 1, but the data has 2 classes"):
        start(recipe(root, "generator", name="one", model={"num_classes": 1}))


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(kind: str, root: Path) -> None:
    unlabelled = {"data": {"train": {"path": str(root / "images" / "above")}, "val": [], "class_balance": 0.7}}
    with pytest.raises(ValueError, match=r"^data\.class_balance=0\.7 needs labels, and no image has one; remove it\.$"):
        start(recipe(root, kind, **unlabelled))
    with pytest.raises(ValueError, match=r"key 'seed' is -1; it must be greater than or equal to 0"):
        start(recipe(root, kind, seed=-1))
    assert not (root / "runs").exists() and not (root / "cache").exists()


def test_unreadable_images_are_named_in_a_generator_run(root: Path) -> None:
    for path in sorted((root / "images" / "above").iterdir())[:6]:
        path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="6 unreadable files"):
        start(recipe(root, "generator"))
    _, progress = start(recipe(root, "generator", data={"max_bad_share": 0.5}))
    assert any("6 unreadable files" in line for line in progress.lines)


def test_a_run_does_not_continue_with_another_tokenizer(root: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        start(recipe(root, "generator"), 3)
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    tokenizer.codebook.weight.data += 1
    save_model(root / "tokenizer", tokenizer)
    with pytest.raises(ValueError, match="another 'tokenizer_weights'"):
        start(recipe(root, "generator"))


def test_checkpoints_of_another_shape_are_refused(root: Path) -> None:
    """They ended in an internal error that printed every tensor."""
    folder, _ = start(recipe(root, "generator", steps=2))
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"is of another model: .* choose another name"):
        start(recipe(root, "generator", steps=2, model={"width": 32}))


def test_a_model_that_enlarges_shows_what_it_is_given_above_its_results(root: Path) -> None:
    asked = []

    def sample(model: GenerativeModel, labels: Tensor, seed: int, low_res: Tensor | None) -> Tensor:
        asked.append((labels, low_res))
        return torch.ones(len(labels), 3, 16, 16)

    config = parse_run(recipe(root, "generator", model={"low_res": 4}, steps=3), "test")
    tokenizer = load_tokenizer(config.tokenizer)
    folder = train(config, StopAt(None), tokenizer=tokenizer, store_tokenizer=save_model, sample_fn=sample)
    ((labels, low_res),) = asked
    images = build_dataset(DataConfig(train={"path": str(root / "images")}, image_size=16), "train")
    shown = torch.stack([images.sample(i, (0,)).image for i in range(8)])
    assert low_res.equal(resize_images(shown, (4, 4))) and labels.tolist() == [
        images.sample(i, (0,)).label for i in range(8)
    ]
    sheet = np.asarray(Image.open(folder / "pictures" / "step-00000003.png"))
    assert sheet.shape[:2] == (2 * 18 + 2, 8 * 18 + 2)
    assert sheet[2, 2].tolist() == tensor_to_levels(low_res[0, :, 0, 0]).tolist() and (sheet[20:36, 2:18] == 255).all()


def test_compiled_blocks_learn_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced with their gradients by PyTorch's compiler; code is not generated, which takes longer."""
    traced = 0
    inplace = torch.nn.Module.compile

    def compile_quickly(module: torch.nn.Module) -> None:
        nonlocal traced
        traced += 1
        inplace(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    runs = [start(recipe(root, "generator", name=str(c), steps=2, compile=c))[0] for c in (False, True)]
    if not traced:
        pytest.skip("torch.compile fails here")
    plain, compiled = (load_checkpoint(checkpoints(folder)[-1])[0]["weights"] for folder in runs)
    assert plain.keys() == compiled.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-3, atol=2e-5, msg=name)


def test_what_cannot_be_compiled_is_told(root: Path) -> None:
    _, progress = start(recipe(root, "tokenizer", steps=1, compile=True))
    assert any("nothing is compiled" in line and "no part that is compiled" in line for line in progress.lines)
