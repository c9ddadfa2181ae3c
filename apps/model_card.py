"""Model cards of bundled models: where they come from, how good they are, and pictures of them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.describe import CARD, disk_size, kind_of, millions, tokenizer_of
from apps.provenance import (
    DataSource,
    command,
    counted,
    data_source,
    describe_split,
    read_metrics,
    this_machine,
    training_seconds,
)
from apps.request import Settings, sampling_arguments, sampling_in_words
from apps.sample import draw
from apps.splits import located, whole_split
from genaim.core.progress import Progress
from genaim.data import DataConfig, image_to_tensor
from genaim.data.grid import contact_sheet
from genaim.data.transforms import resize_images
from genaim.evaluation.neighbours import nearest_neighbours
from genaim.evaluation.reconstruction import bicubic_round_trip, psnr, reconstruction_psnr
from genaim.evaluation.upscaling import luma_psnr
from genaim.heads import MixtureHead
from genaim.models import CausalGenerator, GenerativeModel
from genaim.pretrained.names import run_weights
from genaim.tokenizers import LatentTokenizer, Tokenizer
from genaim.training.config import GeneratorRunConfig, TokenizerRunConfig
from samplers.super_resolve import enlarge

GRID_ROWS = 6
NUM_NEIGHBOURS = 3
SHOWN = 16
BATCH_SIZE = 32
ENLARGED_SIDE = 64  # smaller images are enlarged to about this many pixels


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    run: Path
    config: TokenizerRunConfig | GeneratorRunConfig
    recipe: str
    hardware: str | None
    """None is this machine."""
    minutes: float | None
    """Training time; None is taken from the metrics."""
    notes: str


def write_card(
    folder: Path,
    name: str,
    model: GenerativeModel | Tokenizer,
    origin: Origin,
    settings: Settings | None,
    shared_tokenizer: str | None,
    progress: Progress,
) -> None:
    """Measures an exported model and writes its README.md and pictures.

    Args:
        folder: The exported model.
        name: Name that it will have.
        model: The model as read from there.
        origin: Its run.
        settings: The sampling of the sample grid, for generators.
        shared_tokenizer: Name of its tokenizer if that is bundled by itself.
        progress: Where the course is told.

    Raises:
        ValueError: If the data are unknown or missing, or the card would name a folder of this machine.
    """
    source = data_source(origin.config.data)
    data = located(origin.config.data)
    tokenizer = tokenizer_of(model)
    held_out = torch.cat(list(counted(whole_split(data, "val"), "reading the test split", progress)))
    sections = [heading(name, model, source)]
    rows = facts(folder, model, origin, shared_tokenizer) | reconstruction_facts(tokenizer, held_out, progress)
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
    if isinstance(model, GenerativeModel):
        assert settings is not None
        if model.config.low_res is not None:
            sections += [enlarged_section(folder, model, held_out, settings, source.may_be_shown, progress), table]
        else:
            drawn = draw(model, settings, torch.float32, progress)
            samples = torch.stack([image_to_tensor(picture, tokenizer.image_size) for picture in drawn])
            sections += [sample_section(folder, name, samples, settings), table]
            if source.may_be_shown:
                sections.append(neighbour_section(folder, samples[:SHOWN], held_out, data, progress))
    else:
        sections.append(table)
        if source.may_be_shown:
            sections.append(reconstruction_section(folder, tokenizer, held_out[:SHOWN]))
    sections += [origin.notes.strip()] if origin.notes.strip() else []
    text = "\n\n".join(sections) + "\n"
    leaked = re.search(r"(?<![\w./:])(/(?:home|root|work|tmp|mnt|Users)/[^\s`)]*)", text)
    if leaked:
        raise ValueError(
            f"the card would name '{leaked[1]}', a path of this machine; check the run's recipe and --notes."
        )
    (folder / CARD).write_text(text)


# Sections


def heading(name: str, model: GenerativeModel | Tokenizer, source: DataSource) -> str:
    """Front matter, title and first words."""
    side = tokenizer_of(model).image_size
    what = f"A {kind_of(model)}{' model' * isinstance(model, GenerativeModel)} of {side}x{side} images"
    if isinstance(model, GenerativeModel) and model.config.num_classes:
        names = ", ".join(model.config.class_names or ())
        what += f" in {model.config.num_classes} classes" + (f": {names}" if names else "")
    matter = f"---\nlicense: {source.licence.lower()}\nlibrary_name: genaim\n---"
    return f"{matter}\n\n# {name}\n\n{what}.\n\nTrained on {source.text} ({source.licence}); under the same licence."


def sample_section(folder: Path, name: str, images: Tensor, settings: Settings) -> str:
    """The sample grid."""
    save_sheet(images, len(images) // GRID_ROWS, folder / "samples.png")
    command = f"genaim sample --model {name} -n {len(images)} --seed {settings['seed']} --dtype float32"
    return (
        f"![Samples](samples.png)\n\nSamples of these weights, not selected: the classes in turn, seed "
        f"{settings['seed']}, default settings ({sampling_in_words(settings)}).\n\n    {command}"
    )


def enlarged_section(
    folder: Path, model: GenerativeModel, held_out: Tensor, settings: Settings, shown: bool, progress: Progress
) -> str:
    """Held-out images enlarged from their reductions: figures, and where they may be shown, a picture."""
    assert model.config.low_res is not None
    size, side = model.tokenizer.image_size, model.config.low_res
    low_res = resize_images(held_out, (side, side))
    progress.start("enlarging the test split", 0, len(held_out))
    parts = []
    for first in range(0, len(held_out), BATCH_SIZE):
        part = low_res[first : first + BATCH_SIZE]
        labels = torch.full((len(part),), model.config.num_classes)
        parts.append(
            enlarge(
                model,
                part,
                labels,
                first_index=first,
                **sampling_arguments(settings, torch.float32),
            )
        )
        progress.advance(min(first + BATCH_SIZE, len(held_out)), {})
    progress.stop()
    results, bicubic = torch.cat(parts), resize_images(low_res, (size, size))
    border = size // side
    quality, simple = (luma_psnr(held_out, images, border).mean().item() for images in (results, bicubic))
    text = (
        f"Enlarges {side}x{side} pixels to {size}x{size}: {quality:.2f} dB on the luma of the {len(held_out):,} images "
        f"of the test split, {border} pixels of the border left out, where PIL's bicubic resize reaches {simple:.2f} "
        f"dB; seed {settings['seed']}, default settings ({sampling_in_words(settings)}), made consistent with what is "
        "enlarged."
    )
    if not shown:
        return text
    enlarged = F.interpolate(low_res, size=(size, size), mode="nearest")
    columns = zip(
        *(x[:: len(x) // SHOWN][:SHOWN].split(8) for x in (enlarged, bicubic, results, held_out)), strict=True
    )
    save_sheet(torch.cat([row for rows in columns for row in rows]), 8, folder / "enlarged.png")
    return f"![Enlarged](enlarged.png)\n\n{text} From top to bottom: given, bicubic, enlarged, true."


def facts(
    folder: Path, model: GenerativeModel | Tokenizer, origin: Origin, shared_tokenizer: str | None
) -> dict[str, str]:
    """Rows about weights and training."""
    config = origin.config
    step = int(run_weights(origin.run)[0].parent.name.removeprefix("step-"))
    metrics = [row for row in read_metrics(origin.run / "metrics.jsonl") if row["step"] <= step]
    rest = f", of which {millions(tokenizer_of(model))} in the tokenizer" if config.kind == "generator" else ""
    own = "" if shared_tokenizer is None else f", and the shared tokenizer [{shared_tokenizer}](../{shared_tokenizer})"
    short = "" if step == config.steps else f" (of {config.steps:,} planned)"
    rows = {
        "parameters": millions(model) + rest,
        "size": f"{disk_size(folder) / 1e6:.2f} MB of weights{own}",
        "recipe": f"`{command(config, origin.recipe)}`",
        "training": f"{step:,} steps{short} of {config.batch_size} images; weights averaged by {config.ema_decay:g}",
        "hardware": origin.hardware or this_machine(),
    }
    seconds = training_seconds(metrics)
    minutes = origin.minutes if origin.minutes is not None or seconds is None else seconds / 60
    if minutes is not None:
        rows["training time"] = f"about {minutes:.0f} minutes"
    validated = [row for row in metrics if "val/loss" in row]
    if validated:
        loss, at = validated[-1]["val/loss"], validated[-1]["step"]
        rows["validation loss"] = f"{loss_in_words(model, loss)}, after step {at:.0f}; {describe_split(config.data)}"
    return rows


def loss_in_words(model: GenerativeModel | Tokenizer, loss: float) -> str:
    """A validation loss with its unit, and as bits per dimension where it is their exact number."""
    unit = model.head.loss_unit if isinstance(model, GenerativeModel) else "weighted sum of the recipe's terms"
    bits = f" = {bits_per_dimension(model, loss):.4f} bits per dimension, exact" if counts_pixels(model) else ""
    return f"{loss:.4f} {unit}{bits}"


def counts_pixels(model: GenerativeModel | Tokenizer) -> bool:
    """Whether a model's loss is the exact code length of 8-bit pixels: of all tokens, each from those before it."""
    head = model.head if isinstance(model, CausalGenerator) else None
    return isinstance(head, MixtureHead) and head.config.density == "discretized_logistic"


def bits_per_dimension(model: GenerativeModel | Tokenizer, nats_per_token: float) -> float:
    """Bits for each pixel and channel."""
    return nats_per_token / (tokenizer_of(model).token_channels or 1) / math.log(2)


def reconstruction_facts(tokenizer: Tokenizer, held_out: Tensor, progress: Progress) -> dict[str, str]:
    """Rows about what the tokenizer keeps of the held-out images (M, 3, H, W)."""
    if tokenizer.pixel_levels is not None:
        coloured = tokenizer.config.grey and bool((held_out != held_out[:, :1]).any())
        kept = "their grey levels, colour is lost" if coloured else "the pixels themselves, nothing is lost"
        return {"tokenizer": f"{kind_of(tokenizer)}: {kept}"}
    side = side_in_pixels(tokenizer)
    simple = psnr(held_out, bicubic_round_trip(held_out, side)).mean().item()
    progress.start("reconstructing the test split", 0, len(held_out))
    value = reconstruction_psnr(
        tokenizer, held_out.split(BATCH_SIZE), lambda done: progress.advance(min(done, len(held_out)), {})
    )
    progress.stop()
    return {
        "tokenizer PSNR": f"{value:.2f} dB, mean over the {len(held_out):,} images of the test split, from these "
        f"weights (for comparison, bicubic through {side}x{side} pixels: {simple:.2f} dB)"
    }


def side_in_pixels(tokenizer: Tokenizer) -> int:
    """Side of the small image that has as many pixels as the latent, or the finest scale, has cells."""
    if isinstance(tokenizer, LatentTokenizer):
        return tokenizer.latent_shape[1]
    side: int = getattr(tokenizer, "patch_nums", [tokenizer.image_size])[-1]
    return side


def reconstruction_section(folder: Path, tokenizer: Tokenizer, images: Tensor) -> str:
    """Held-out images above their reconstructions."""
    with torch.no_grad():
        reconstructions = tokenizer.decode(tokenizer.encode(images))
    rows = zip(images.split(8), reconstructions.split(8), strict=True)
    save_sheet(torch.cat([half for pair in rows for half in pair]), 8, folder / "reconstructions.png")
    return "![Reconstructions](reconstructions.png)\n\nImages of the test split above their reconstructions."


def neighbour_section(folder: Path, samples: Tensor, held_out: Tensor, data: DataConfig, progress: Progress) -> str:
    """Samples beside their nearest training images, and how far held-out images are from theirs."""
    candidates = counted(whole_split(data, "train"), "searching the training images", progress)
    found = nearest_neighbours(torch.cat([samples, held_out]), candidates, NUM_NEIGHBOURS, mirrored=data.flip)
    shown = torch.cat([samples[:, None], found.images[: len(samples)]], dim=1).flatten(0, 1)
    save_sheet(shown, 2 * (1 + NUM_NEIGHBOURS), folder / "neighbours.png")
    own, unseen = found.distances[:, 0].split([len(samples), len(held_out)])
    each = ", ".join(f"{value:.1f}" for value in own.tolist())
    mirrored = ", mirrored ones included" if data.flip else ""
    return (
        "![Nearest training images](neighbours.png)\n\n"
        f"Memory or new: the first {len(samples)} samples (columns 1 and {2 + NUM_NEIGHBOURS}), each with its "
        f"{NUM_NEIGHBOURS} nearest training images{mirrored}, by the L2 distance of pixels. Distances of the nearest, "
        f"as root mean square of the differences in 8-bit levels: {each}; median {own.median().item():.1f}. For "
        f"comparison, the {len(unseen)} images of the test split, which the model has not seen: median "
        f"{unseen.median().item():.1f}."
    )


def save_sheet(images: Tensor, columns: int, path: Path) -> None:
    """Writes a contact sheet, small images enlarged."""
    contact_sheet(images, columns=columns, scale=max(1, ENLARGED_SIDE // images.shape[-1])).save(path, optimize=True)
