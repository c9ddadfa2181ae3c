"""From a recipe to a trained run folder."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

from genaim.core.hardware import autocast, pick_dtype
from genaim.core.progress import Progress, SilentProgress
from genaim.data import (
    BadFiles,
    ImageDataset,
    MomentsDataset,
    StreamDataset,
    build_dataset,
    build_token_cache,
)
from genaim.data.loader import class_groups
from genaim.models import ENCODERS, MODELS, Encoder, GenerativeModel, GeneratorConfig
from genaim.tokenizers import TOKENIZERS, LatentTokenizer, Tokenizer, fingerprint
from genaim.training.checkpoint import checkpoints
from genaim.training.config import AnyRunConfig, EncoderRunConfig, GeneratorRunConfig, TokenizerRunConfig
from genaim.training.init import start_from
from genaim.training.latent_scale import settle_latent_scale
from genaim.training.run_folder import alone, write_config
from genaim.training.tasks import EncoderTask, GeneratorTask, SampleFn, Task
from genaim.training.tokenizer_tasks import TOKENIZER_TASKS
from genaim.training.trainer import Dataset, Trainer, make_accelerator

StoreFn = Callable[[Path, Tokenizer], None]
"""Writes a tokenizer's folder; training imports no file format of models."""
LoadFn = Callable[[str], GenerativeModel | Encoder | Tokenizer]
"""Reads a model by name or folder."""


def train(
    config: AnyRunConfig,
    progress: Progress,
    *,
    tokenizer: Tokenizer | None = None,
    store_tokenizer: StoreFn | None = None,
    load_model: LoadFn | None = None,
    sample_fn: SampleFn | None = None,
) -> Path:
    """Trains a recipe to its end, continuing what its run folder holds.

    Args:
        config: The recipe.
        progress: Where the course is told.
        tokenizer: The trained tokenizer; a generator run needs it.
        store_tokenizer: How it is kept with the run, so that the folder rebuilds the model by itself.
        load_model: How the model that the recipe's `init` names is read.
        sample_fn: How a generator is sampled for the image grids.

    Returns:
        The run folder.

    Raises:
        ValueError: If the recipe does not fit its data, or the run folder holds another recipe or is being trained in.
        Interrupted: After SIGINT or SIGTERM, once the state is saved.
    """
    folder = Path(config.folder) / config.name
    accelerator = make_accelerator(config, folder)
    if not accelerator.is_main_process:
        progress = SilentProgress()
    if isinstance(config, TokenizerRunConfig) and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("FSDP cannot train a tokenizer, whose codebook is updated whole; use plain processes.")
    torch.manual_seed(config.seed)
    train_set, val_set = _open_data(config, tokenizer)
    sets: Sequence[Dataset | None] = (train_set, val_set)
    if isinstance(config, GeneratorRunConfig):
        if tokenizer is None:
            raise ValueError("a generator run needs its trained tokenizer; pass tokenizer=.")
        config = _fitted(config, tokenizer, train_set)
        config = _scaled(config, tokenizer, train_set, folder, accelerator, progress)
    task = _make_task(config, tokenizer, sample_fn, progress)
    if config.init is not None and not checkpoints(folder):
        if load_model is None:
            raise ValueError(f"init is '{config.init}', but nothing can read it; pass load_model=.")
        try:
            source = load_model(config.init)
        except ValueError as error:
            raise ValueError(f"init: {error} (init=null starts from random weights.)") from None
        start_from(task.model, source, config.init, progress)
    with alone(folder) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            _write_recipe(folder, config, sets, tokenizer, store_tokenizer)
        if isinstance(task, GeneratorTask) and isinstance(config, GeneratorRunConfig):
            sets = [_encoded(data, config, task.model, accelerator, progress) for data in sets]
        accelerator.init_trackers(config.name)
        Trainer(config, folder, task, sets, progress, accelerator).train()
    return folder


def _open_data(config: AnyRunConfig, tokenizer: Tokenizer | None) -> tuple[Dataset, Dataset | None]:
    """The training and the validation set.

    Raises:
        ValueError: If such a run cannot be trained on the data.
    """
    train_set = build_dataset(config.data, "train")
    val_set = build_dataset(config.data, "val", class_names=train_set.class_names) if config.data.val else None
    for data in (train_set, val_set):
        _check_data(data, config, tokenizer)
    if config.data.class_balance:  # the loader would ask only once everything is encoded
        class_groups(train_set, config.data.class_balance)
    return train_set, val_set


def _check_data(dataset: Dataset | None, config: AnyRunConfig, tokenizer: Tokenizer | None) -> None:
    """Cached moments that the tokenizer cannot have written become unreadable files.

    Raises:
        ValueError: If such a run cannot be trained on the data.
    """
    if isinstance(dataset, StreamDataset) and isinstance(config, GeneratorRunConfig):
        raise ValueError(
            "a generator trains from a token cache, which needs data with a known length; tar and streamed "
            "Hub data train tokenizers only: unpack them into a folder, or use parquet."
        )
    if isinstance(dataset, MomentsDataset):
        if not isinstance(config, GeneratorRunConfig) or not isinstance(tokenizer, LatentTokenizer):
            raise ValueError("cached moments train generators over an autoencoder's latents only; give the images.")
        if config.views > 1:
            raise ValueError(f"views={config.views} needs images; data.flip chooses from the two of cached moments.")
        if config.model.low_res is not None:
            raise ValueError("model.low_res needs images to reduce; cached moments have none.")
        channels, *sides = tokenizer.latent_shape
        dataset.expect((2 * channels, *sides))


def _scaled(
    config: GeneratorRunConfig,
    tokenizer: Tokenizer,
    data: Dataset,
    folder: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> GeneratorRunConfig:
    """The recipe with the latent scale of its run, which the tokenizer is given too if it has none."""
    if not isinstance(tokenizer, LatentTokenizer) or tokenizer.latent_scale > 0:
        if config.latent_scale is not None:
            raise ValueError(f"latent_scale={config.latent_scale} is for a tokenizer without one; remove it.")
        return config
    if config.latent_scale is None:
        scale = settle_latent_scale(tokenizer, data, folder, config, accelerator, progress)
        return config.model_copy(update={"latent_scale": scale})
    tokenizer.latent_scale.fill_(config.latent_scale)
    return config


def _fitted(config: GeneratorRunConfig, tokenizer: Tokenizer, data: Dataset) -> GeneratorRunConfig:
    """The recipe with the number and names of the data's classes, unless it says otherwise."""
    if tokenizer.image_size != config.data.image_size:
        name = config.tokenizer if isinstance(config.tokenizer, str) else config.tokenizer.kind
        raise ValueError(
            f"tokenizer '{name}' makes images of {tokenizer.image_size} pixels, but data.image_size is "
            f"{config.data.image_size}; make them equal."
        )
    config = config.model_copy(update={"tokenizer_weights": fingerprint(tokenizer)})
    given: GeneratorConfig = config.model
    if "num_classes" in given.model_fields_set:
        if 0 < given.num_classes < (data.num_classes or 0):
            raise ValueError(
                f"model.num_classes is {given.num_classes}, but the data has {data.num_classes} classes; leave it "
                "out, or set it to 0 to train without classes."
            )
        return config
    classes = {"num_classes": data.num_classes or 0, "class_names": data.class_names and tuple(data.class_names)}
    return config.model_copy(update={"model": given.model_copy(update=classes)})


def _make_task(
    config: AnyRunConfig, tokenizer: Tokenizer | None, sample_fn: SampleFn | None, progress: Progress
) -> Task:
    """The fresh model of a run, and what it learns."""
    if isinstance(config, TokenizerRunConfig):
        tokenizer_class: Any = TOKENIZERS[config.tokenizer.kind][1]
        model = tokenizer_class(config.tokenizer).to(memory_format=torch.channels_last)
        task = TOKENIZER_TASKS[config.tokenizer.kind](model, config.loss)
        for warning in task.warnings:
            progress.say(f"WARNING: {warning}")
        return task
    if isinstance(config, EncoderRunConfig):
        encoder_class: Any = ENCODERS[config.model.kind][1]
        return EncoderTask(encoder_class(config.model))
    model_class: Any = MODELS[config.model.kind][1]
    return GeneratorTask(model_class(config.model, tokenizer), sample_fn)


def _write_recipe(
    folder: Path,
    config: AnyRunConfig,
    sets: Sequence[Dataset | None],
    tokenizer: Tokenizer | None,
    store_tokenizer: StoreFn | None,
) -> None:
    """Writes what rebuilds the model, the recipe and the tokenizer, into the run folder.

    Raises:
        ValueError: If the folder holds another recipe.
    """
    prints = [data.fingerprint() for data in sets if data is not None]
    write_config(folder, config.model_copy(update={"data_fingerprint": "-".join(prints)}))
    kept = (folder / "tokenizer").exists() and checkpoints(folder)
    if tokenizer is not None and store_tokenizer is not None and not kept:
        store_tokenizer(folder / "tokenizer", tokenizer)


def _encoded(
    dataset: Dataset | None,
    config: GeneratorRunConfig,
    model: GenerativeModel,
    accelerator: Accelerator,
    progress: Progress,
) -> Dataset | None:
    """The token cache of a data set; the first process writes it and the others open it. Cached moments are one."""
    if dataset is None or isinstance(dataset, MomentsDataset):
        return dataset
    assert isinstance(dataset, ImageDataset)
    tokenizer = model.tokenizer.to(accelerator.device).eval()
    dtype = pick_dtype(config.dtype, accelerator.device)

    @torch.no_grad()
    def encode(images: torch.Tensor) -> torch.Tensor:
        with autocast(accelerator.device, dtype):
            return model.encode_for_cache(images.to(accelerator.device))

    key = [fingerprint(tokenizer), tokenizer.config.model_dump_json(), str(dtype)]
    if model.cached != "tokens":
        key.append(model.cached)
    views = config.views if dataset.transform.random else 1
    bad_files = BadFiles(config.data.max_bad_share, total=len(dataset))
    progress.start("encoding images", 0, len(dataset) * views)
    with accelerator.main_process_first():
        cache = build_token_cache(
            dataset,
            encode,
            folder=Path(config.cache_folder),
            tokenizer_fingerprint="-".join(key),
            views=views,
            low_res=config.model.low_res,
            seed=config.seed,
            num_workers=config.data.num_workers,
            bad_files=bad_files,
            report=lambda done, total: progress.advance(done, {}),
        )
    progress.stop()
    if bad_files.names:
        progress.say(bad_files.summary())
    return cache
