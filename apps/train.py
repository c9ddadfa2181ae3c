"""`genaim train`: from a recipe to a run folder."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from apps.errors import Stopped
from apps.progress import make_progress
from genaim.config import find_recipe, load_config, recipes
from genaim.core.hardware import pick_device, pick_dtype
from genaim.pretrained import from_pretrained, load_tokenizer, save_model
from genaim.training.config import GeneratorRunConfig, parse_run
from genaim.training.run import train as run_training
from genaim.training.trainer import Interrupted, end_processes
from samplers import generate


def train(recipe: str, overrides: Sequence[str]) -> None:
    """Trains a recipe, or goes on where the same command was interrupted.

    Raises:
        Stopped: After an interruption, with the state saved.
        ValueError: If the recipe, its data or its tokenizer cannot be used.
    """
    path = find_recipe(recipe)
    config = parse_run(load_config(path, overrides), shlex.join([recipe, *overrides]))
    progress = make_progress()
    tokenizer = load_tokenizer(config.tokenizer, progress=progress) if isinstance(config, GeneratorRunConfig) else None
    device = pick_device(config.device)
    dtype = str(pick_dtype(config.dtype, device)).removeprefix("torch.")
    what = "an encoder" if config.kind == "encoder" else f"a {config.kind}"
    work = f"{what}, {config.steps} steps of {config.batch_size} images"
    progress.say(f"{config.name}: training {work}, on {device} in {dtype}")
    try:
        folder = run_training(
            config,
            progress,
            tokenizer=tokenizer,
            store_tokenizer=save_model,
            load_model=lambda name: from_pretrained(name, progress=progress),
            sample_fn=lambda model, labels, seed, low_res: generate(model, labels, seed=seed, low_res=low_res),
        )
    except Interrupted as interrupted:
        raise Stopped(f"{interrupted} It was: {shlex.join(['genaim', 'train', recipe, *overrides])}") from None
    finally:
        progress.stop()
    end_processes()
    progress.say(f"trained: {folder}")
    if config.kind == "tokenizer":
        words = [recipe_over(config.name), f"tokenizer={folder}"]
        progress.say(f"train a generator over it with: {shlex.join(['genaim', 'train', *words])}")
    if isinstance(config, GeneratorRunConfig):
        command = "sample" if config.model.low_res is None else "upscale IMAGE"
        progress.say(f"look at it with: genaim {command} --model {shlex.quote(str(folder))}")
    if config.kind == "encoder":
        progress.say(f"use it with: genaim.pretrained.load_encoder({str(folder)!r}).features(images)")


def recipe_over(run: str) -> str:
    """The recipe of a generator over the tokenizer that a run of this name trains, RECIPE if there is none.

    Of several it is the one with the shortest name.
    """
    tokenizers = {name: load_config(path, expand=False).get("tokenizer") for name, path in recipes().items()}
    fitting = [name for name, found in tokenizers.items() if isinstance(found, str) and Path(found).name == run]
    return min(fitting, key=len, default="RECIPE")
