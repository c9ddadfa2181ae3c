"""From a recipe to a trained run folder."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from genaim.core.hardware import autocast, pick_dtype
from genaim.data import ImageDataset, StreamDataset, TokenDataset, build_dataset, build_token_cache
from genaim.models import MODELS, GeneratorConfig
from genaim.tokenizers import TOKENIZERS, Tokenizer, fingerprint
from genaim.training.config import GeneratorRunConfig, RunConfig, TokenizerRunConfig
from genaim.training.progress import Progress
from genaim.training.tasks import GeneratorTask, SampleFn, Task, TokenizerTask
from genaim.training.trainer import Dataset, Trainer, make_accelerator, write_config


def train(
    config: RunConfig, tokenizer: Tokenizer | None, progress: Progress, sample_fn: SampleFn | None = None
) -> Path:
    """Trains a recipe to its end, continuing what its run folder holds.

    Args:
        config: The recipe.
        tokenizer: The trained tokenizer of a generator run.
        progress: Where the course is told.
        sample_fn: How a generator is sampled for the image grids.

    Returns:
        The run folder.

    Raises:
        ValueError: If the recipe does not fit its data, or the run folder holds another recipe.
        Interrupted: After SIGINT or SIGTERM, once the state is saved.
    """
    folder = Path(config.folder) / config.name
    accelerator = make_accelerator(config, folder)
    torch.manual_seed(config.seed)
    train_set = build_dataset(config.data, "train")
    val_set = build_dataset(config.data, "val", class_names=train_set.class_names) if config.data.val else None
    task: Task
    if isinstance(config, TokenizerRunConfig):
        if accelerator.is_main_process:
            write_config(folder, config)
        model = TOKENIZERS[config.tokenizer.kind][1](config.tokenizer)
        task = TokenizerTask(model.to(memory_format=torch.channels_last), config.loss)
        for warning in task.warnings:
            progress.say(f"WARNING: {warning}")
        sets: list[Dataset | None] = [train_set, val_set]
    else:
        assert isinstance(config, GeneratorRunConfig) and tokenizer is not None
        if tokenizer.image_size != config.data.image_size:
            raise ValueError(
                f"tokenizer '{config.tokenizer}' makes images of {tokenizer.image_size} pixels, but data.image_size is "
                f"{config.data.image_size}; make them equal."
            )
        config = _with_classes(config, train_set)
        if accelerator.is_main_process:
            write_config(folder, config)
            _keep_tokenizer(folder, tokenizer)
        sets = [_encoded(d, config, tokenizer, accelerator, progress) for d in (train_set, val_set)]
        model_class: Any = MODELS[config.model.kind][1]
        task = GeneratorTask(model_class(config.model, tokenizer), sample_fn)
    accelerator.init_trackers(config.name)
    assert sets[0] is not None
    trainer = Trainer(config, folder, task, sets[0], sets[1], progress, accelerator, config.data.max_bad_share)
    trainer.train()
    return folder


def _with_classes(config: GeneratorRunConfig, data: ImageDataset | StreamDataset) -> GeneratorRunConfig:
    """The recipe with the number and names of the data's classes, unless it says otherwise."""
    given: GeneratorConfig = config.model
    if "num_classes" in given.model_fields_set:
        return config
    classes = {"num_classes": data.num_classes or 0, "class_names": data.class_names and tuple(data.class_names)}
    return config.model_copy(update={"model": given.model_copy(update=classes)})


def _keep_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Stores the tokenizer with the run, so that the folder rebuilds the model by itself."""
    from genaim.pretrained.store import save_model

    if not (folder / "tokenizer").exists():
        save_model(folder / "tokenizer", tokenizer)


def _encoded(
    dataset: ImageDataset | StreamDataset | None,
    config: GeneratorRunConfig,
    tokenizer: Tokenizer,
    accelerator: Accelerator,
    progress: Progress,
) -> TokenDataset | None:
    """The token cache of a data set; the first process writes it and the others open it."""
    if dataset is None:
        return None
    if isinstance(dataset, StreamDataset):
        raise ValueError(
            "a generator trains from a token cache, which needs data with a known length; tar and streamed "
            "Hub data train tokenizers only: unpack them into a folder, or use parquet."
        )
    tokenizer.to(accelerator.device).eval()
    dtype = pick_dtype(config.dtype, accelerator.device)

    @torch.no_grad()
    def encode(images: torch.Tensor) -> torch.Tensor:
        with autocast(accelerator.device, dtype):
            return tokenizer.encode(images.to(accelerator.device))

    progress.start("encoding images", 0, len(dataset))
    with accelerator.main_process_first():
        cache = build_token_cache(
            dataset,
            encode,
            folder=Path(config.cache_folder),
            tokenizer_fingerprint=f"{fingerprint(tokenizer)}-{dtype}",
            views=config.views if dataset.transform.random else 1,
            seed=config.seed,
            num_workers=config.data.num_workers,
            report=lambda done, total: progress.advance(done, {}),
        )
    progress.stop()
    return cache
