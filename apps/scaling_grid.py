"""The grid of a scaling study: sizes and data as they are written on the command line, to recipes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from genaim.config import nearest
from genaim.data import StreamDataset, build_dataset
from genaim.models import MODELS
from genaim.models.mar import MARConfig
from genaim.training.config import GeneratorRunConfig, parse_run

SIZE = re.compile(r"w(\d+)d(\d+)(?:h(\d+))?")
SIZE_KEYS = ("preset", "width", "depth", "encoder_depth", "decoder_depth", "num_heads")


@dataclass(frozen=True)
class GridPoint:
    """One model to train."""

    size: str
    images: int
    config: GeneratorRunConfig


def make_grid(
    recipe: dict[str, Any], config: GeneratorRunConfig, sizes: Sequence[str], data: Sequence[str]
) -> list[GridPoint]:
    """The recipes of all sizes with the most images, then with fewer.

    Args:
        recipe: The raw recipe that they share.
        config: The same, validated.
        sizes: As `model_of_size` reads them.
        data: As `images_of` reads them.

    Raises:
        ValueError: If a size or number cannot be used or is given twice, or there is one point only.
    """
    lengths = count_images(config)
    counts = [images_of(text, lengths) for text in data]
    for option, names in (("--sizes", list(sizes)), ("--data", [str(sum(c)) for c in counts])):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or not names:
            raise ValueError(f"{option} names {twice or 'nothing'}{' twice' * bool(twice)}; give different values.")
    if len(sizes) * len(counts) < 2:
        raise ValueError(f"'{sizes[0]}' with {sum(counts[0])} images is one point, and a law needs two; add --sizes.")
    models = {size: model_of_size(size, recipe["model"], config) for size in sizes}
    return [
        GridPoint(size, sum(chosen), point_config(recipe, size, models[size], chosen, lengths))
        for chosen in sorted(counts, key=sum, reverse=True)
        for size in sizes
    ]


def point_config(
    recipe: dict[str, Any], size: str, model: dict[str, Any], chosen: Sequence[int], lengths: Sequence[int]
) -> GeneratorRunConfig:
    """The recipe of a point: its model, and so many images of every source."""
    config = parse_run({**recipe, "name": f"{size}-n{sum(chosen)}", "model": model}, f"size '{size}'")
    assert isinstance(config, GeneratorRunConfig)
    parts = zip(config.data.train, chosen, lengths, strict=True)
    train = [s if count == length else s.model_copy(update={"num_images": count}) for s, count, length in parts]
    return config.model_copy(update={"data": config.data.model_copy(update={"train": train})})


def model_of_size(size: str, model: dict[str, Any], config: GeneratorRunConfig) -> dict[str, Any]:
    """A raw model config of another size.

    ``w96d4`` is 96 channels and 4 blocks, in MAR 4 of encoder and decoder each, and ``h3`` behind it 3 attention heads;
    without, their number keeps the recipe's channels of a head as nearly as it divides the width. Any other size is a
    preset of the model. Everything else, such as the networks of a diffusion head, is as in the recipe.

    Raises:
        ValueError: If it is neither.
    """
    found = SIZE.fullmatch(size)
    if found is None:
        presets = MODELS[config.model.kind][0].presets
        if size not in presets:
            raise ValueError(
                f"size '{size}' is neither of the form w64d4 (width, depth, and h2 for heads if wanted) nor a preset "
                f"of {config.model.kind}; {nearest(size, presets)}."
            )
        return {key: value for key, value in model.items() if key not in SIZE_KEYS} | {"preset": size}
    width, depth, heads = (int(part) if part else 0 for part in found.groups())
    if not width or not depth or (heads == 0 and found.group(3)):
        raise ValueError(f"size '{size}' has a 0; width, depth and heads are 1 or more.")
    is_mar = isinstance(config.model, MARConfig)
    depths = ("encoder_depth", "decoder_depth") if is_mar else ("depth",)
    return {
        **model,
        **dict.fromkeys(depths, depth),
        "width": width,
        "num_heads": heads or heads_like(config, width),
    }


def heads_like(config: GeneratorRunConfig, width: int) -> int:
    """The divisor of a width that is nearest to the recipe's channels of a head."""
    model: Any = config.model
    trunk = model.transformer(model.encoder_depth) if isinstance(model, MARConfig) else model.transformer()
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    return min(divisors, key=lambda n: abs(math.log(width / n / trunk.head_dim)))


def count_images(config: GeneratorRunConfig) -> list[int]:
    """Images of every training source.

    Raises:
        ValueError: If one can only be read in order.
    """
    dataset = build_dataset(config.data, "train")
    if isinstance(dataset, StreamDataset):
        raise ValueError("a scaling study counts its training images, and a stream has no number; use other data.")
    return dataset.lengths


def images_of(text: str, lengths: Sequence[int]) -> list[int]:
    """How many images of every source a share or a number means.

    Args:
        text: A share up to 1, such as 0.25 or 1/4, or a number above 1.
        lengths: Images of every source; each gives its part, at least one.

    Raises:
        ValueError: If it is neither, or more than there are.
    """
    total = sum(lengths)
    try:
        number = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--data '{text}' is no number; give shares such as 1/4 or numbers such as 1000.") from None
    if number <= 0:
        raise ValueError(f"--data {text} is no part of the {total} training images; give a share above 0, or a number.")
    if number > 1 and number.denominator > 1:
        raise ValueError(f"--data {text} is neither a share, up to 1, nor a whole number of images; change it.")
    if number > total:
        raise ValueError(f"--data {text} is more than the {total} training images; lower it.")
    share = number if number <= 1 else number / total
    return [max(round(share * length), 1) for length in lengths]
