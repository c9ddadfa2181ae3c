"""The latent scale of a tokenizer that has none: measured on the run's own images, once."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from genaim.core.progress import Progress
from genaim.data import make_loader
from genaim.tokenizers import LatentTokenizer
from genaim.tokenizers.latents import Posterior, split_moments
from genaim.training.checkpoint import checkpoints
from genaim.training.config import RunConfig
from genaim.training.trainer import Dataset

IMAGES, BATCH = 256, 16


def settle_latent_scale(
    tokenizer: LatentTokenizer,
    dataset: Dataset,
    folder: Path,
    config: RunConfig,
    accelerator: Accelerator,
    progress: Progress,
) -> float:
    """Gives a tokenizer the latent scale of its run, and returns it.

    A run that has saved a checkpoint keeps the scale in its recipe. Otherwise the first process measures it, in float32
    on the first 256 images as training draws them, and tells the others: their number changes nothing.
    """
    found: list[float | None] = [None]
    if accelerator.is_main_process:
        found = [recorded_scale(folder)]
        if found[0] is None:
            tokenizer.to(accelerator.device).eval()
            tokenizer.measure_scale(islice(posteriors(tokenizer, dataset, config), IMAGES // BATCH))
            found = [tokenizer.latent_scale.item()]
            progress.say(f"latent scale {found[0]:.4f}, measured on {IMAGES} training images")
    broadcast_object_list(found)
    assert found[0] is not None
    tokenizer.latent_scale.fill_(found[0])
    return found[0]


@torch.no_grad()
def posteriors(tokenizer: LatentTokenizer, dataset: Dataset, config: RunConfig) -> Iterator[Posterior]:
    """The latents of training images as a run draws them, in batches without end."""
    for batch in make_loader(dataset, batch_size=BATCH, seed=config.seed, class_balance=config.data.class_balance):
        batch = batch.to(tokenizer.latent_scale.device)
        if batch.images is not None:
            yield tokenizer.posterior(batch.images)
        else:
            assert batch.tokens is not None
            yield split_moments(batch.tokens)


def recorded_scale(folder: Path) -> float | None:
    """The latent scale in the recipe of a run folder; None if it has measured none, or has no checkpoint."""
    path = folder / "config.yaml"
    if not path.exists() or not checkpoints(folder):
        return None
    scale: float | None = yaml.safe_load(path.read_text()).get("latent_scale")
    return scale
