"""``python -m apps.judge_upscale``: how good models enlarge pictures, beside PIL's bicubic resize.

Two sets, both held out: emoji at the size that the models make, and the five photographs of Set5. Low-resolution images
are PIL's antialiased bicubic reductions, and everything is measured on 8-bit pictures, as they are written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps import options
from apps.errors import guarded
from apps.folders import make_parent, write_json
from apps.held_out import EMOJI_SIDE, held_out_emoji, row_names

if TYPE_CHECKING:
    from torch import Tensor

    from genaim.models import GenerativeModel

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BATCH = 20
COLUMNS = ("set", "method", "psnr", "ssim", "largest error", "beyond 1 level")


@dataclass(frozen=True)
class TestSet:
    """Pictures and their reductions."""

    name: str
    pictures: "list[Tensor]"
    """(3, H, W) each, in [-1, 1]."""
    reduced: "list[Tensor]"
    """(3, H / factor, W / factor) each."""
    factor: int


def main() -> None:
    """Runs the command and exits; statuses as those of ``genaim``."""
    raise SystemExit(guarded(lambda: app(prog_name="python -m apps.judge_upscale", standalone_mode=False)))


@app.command()
def judge(
    models: Annotated[list[str], typer.Option("--model", help="Model that enlarges; may be given several times.")],
    factor: Annotated[int, typer.Option(help="How much larger.")] = 4,
    count: Annotated[int, typer.Option("--count", "-n", help="Emoji to judge on, evenly over the test split.")] = 100,
    samples: Annotated[int, typer.Option(help="Samples of a picture; of several the mean is judged too.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first samples; the others have the next ones.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")] = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of generation. Default: the model's.")] = None,
    consistent: Annotated[bool, typer.Option(help="Make the results consistent with what is enlarged.")] = True,
    device: Annotated[str, typer.Option(help="Where to generate: auto, cpu, cuda or mps.")] = "auto",
    data: Annotated[Path | None, typer.Option(help="Folder of noto_emoji and sr/Set5. Default: $GENAIM_DATA.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
) -> None:
    """Judge enlarged pictures: PSNR and SSIM of the luma, and what their reductions differ from what was enlarged."""
    from apps.progress import make_progress
    from genaim.core.hardware import pick_device
    from genaim.pretrained import load_generator
    from samplers.super_resolve import check_factor

    if min(count, samples) < 1:
        raise ValueError(f"-n is {count} and --samples {samples}; give 1 or more of each.")
    check_judged(factor)
    if report is not None:
        make_parent(report)
    progress = make_progress()
    root = data_folder(data)
    loaded = {name: load_generator(model, device=pick_device(device)) for model, name in row_names(models).items()}
    for model in loaded.values():
        check_factor(model, factor)
    emoji, _ = held_out_emoji(root, count)
    rows = []
    for test in (with_reductions(f"{count} emoji", list(emoji), factor), set5(root, factor)):
        rows += [judged(test, "bicubic", bicubic(test)), judged(test, "bicubic, consistent", bicubic(test, True))]
        for name, model in loaded.items():
            sampling = {
                "options": model.config.sampling.options(temperature=temperature),
                "guidance_scale": guidance,
                "guidance_schedule": guidance_schedule,
                "num_steps": steps,
            }
            drawn: list[list[Tensor]] = []
            progress.start(f"{test.name} by {name}", 0, samples * len(test.pictures))
            for number in range(samples):
                drawn.append([])
                for image in enlarged(model, test, consistent, seed=seed + number, **sampling):
                    drawn[-1].append(image)
                    progress.advance(number * len(test.pictures) + len(drawn[-1]), {})
            progress.stop()
            rows.append(judged(test, name, drawn[0]))
            if samples > 1:
                mean = [sum(images[1:], images[0]) / samples for images in zip(*drawn, strict=True)]
                rows.append(judged(test, f"{name}, mean of {samples}", mean))
    progress.say(table(rows))
    if report is not None:
        write_json(report, rows)
        progress.say(f"written: {report}")


# Pictures


def check_judged(factor: int) -> None:
    """Raises ValueError unless the emoji, reduced by the factor, leave a window of SSIM inside the border."""
    from genaim.evaluation.upscaling import SSIM_SIDE

    allowed = [f for f in range(2, EMOJI_SIDE) if EMOJI_SIDE % f == 0 and EMOJI_SIDE - 2 * f >= SSIM_SIDE]
    if factor not in allowed:
        raise ValueError(f"--factor is {factor}; for emoji of {EMOJI_SIDE} pixels it must be one of {allowed}.")


def data_folder(given: Path | None) -> Path:
    """The folder of the test pictures.

    Raises:
        ValueError: If it lacks one of the two sets.
    """
    from genaim.config import data_root

    root = given or data_root()
    if root is None:
        raise ValueError(
            "test pictures are needed: give --data, or set GENAIM_DATA to the folder of noto_emoji and sr."
        )
    for part in ("noto_emoji", "sr/Set5"):
        if not (root / part).is_dir():
            raise ValueError(f"'{root}' has no folder {part}; give --data the folder that has noto_emoji and sr/Set5.")
    return root


def set5(root: Path, factor: int) -> TestSet:
    """The five photographs, their sides cut at right and bottom to multiples of the factor."""
    from genaim.data.transforms import open_image

    pictures = []
    for path in sorted((root / "sr" / "Set5").glob("*.png")):
        image = open_image(path).convert("RGB")
        pictures.append(
            to_tensor(image.crop((0, 0, image.width - image.width % factor, image.height - image.height % factor)))
        )
    return with_reductions("Set5", pictures, factor)


def with_reductions(name: str, pictures: "list[Tensor]", factor: int) -> TestSet:
    """Pictures (3, H, W) with what is left of them at low resolution."""
    from genaim.data.transforms import resize_images

    sizes = [(picture.shape[1] // factor, picture.shape[2] // factor) for picture in pictures]
    reduced = [resize_images(picture[None], size)[0] for picture, size in zip(pictures, sizes, strict=True)]
    return TestSet(name, pictures, reduced, factor)


def to_tensor(image: Any) -> "Tensor":
    """An RGB picture as (3, H, W) in [-1, 1]."""
    import numpy as np

    from genaim.data.transforms import levels_to_tensor

    return levels_to_tensor(np.asarray(image).transpose(2, 0, 1))


# Methods


def bicubic(test: TestSet, consistent: bool = False) -> "list[Tensor]":
    """PIL's bicubic resize of every reduced picture, as it is, or made consistent with it."""
    from genaim.data.transforms import resize_images
    from samplers.consistency import project

    results = []
    for picture, small in zip(test.pictures, test.reduced, strict=True):
        large = resize_images(small[None], (picture.shape[1], picture.shape[2]))
        results.append((project(large, small[None]) if consistent else large)[0])
    return results


def enlarged(model: "GenerativeModel", test: TestSet, consistent: bool, **sampling: Any) -> "Iterator[Tensor]":
    """Every reduced picture enlarged by a model without a class; those that fit it exactly in batches."""
    import torch

    from genaim.data.transforms import tensor_to_pil
    from samplers.super_resolve import check_factor, enlarge, super_resolve

    side = model.tokenizer.image_size // check_factor(model, test.factor)
    if all(small.shape[1:] == (side, side) for small in test.reduced):
        if model.low_res_prefix is None:
            sampling["guidance_scale"] = 1.0
        for first in range(0, len(test.reduced), BATCH):
            low_res = torch.stack(test.reduced[first : first + BATCH])
            labels = torch.full((len(low_res),), model.config.num_classes)
            yield from enlarge(model, low_res, labels, first_index=first, consistent=consistent, **sampling).cpu()
    else:
        for small in test.reduced:
            picture = tensor_to_pil(small[None])[0]
            yield to_tensor(super_resolve(model, picture, test.factor, consistent=consistent, **sampling))


# Figures


def judged(test: TestSet, method: str, images: "list[Tensor]") -> dict[str, Any]:
    """A row of the table: means over the pictures, and over all values of their reductions."""
    import torch

    from genaim.data.transforms import levels_to_tensor, tensor_to_levels
    from genaim.evaluation.upscaling import consistency_error, luma_psnr, luma_ssim

    psnr, ssim, errors = [], [], []
    for picture, small, image in zip(test.pictures, test.reduced, images, strict=True):
        rounded = levels_to_tensor(tensor_to_levels(image).numpy())
        pair = picture[None], rounded[None]
        psnr.append(luma_psnr(*pair, test.factor).item())
        ssim.append(luma_ssim(*pair, test.factor).item())
        errors.append(consistency_error(rounded[None], small[None]).flatten())
    error = torch.cat(errors).round()
    values = (sum(psnr) / len(psnr), sum(ssim) / len(ssim), error.max().item(), (error > 1).float().mean().item())
    return dict(zip(COLUMNS, (test.name, method, *values), strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader, in Markdown."""
    lines = [
        "| set | method | PSNR (dB) | SSIM | largest error of the reduction | values beyond 1 level |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name, method, psnr, ssim, largest, beyond = (row[column] for column in COLUMNS)
        lines.append(f"| {name} | {method} | {psnr:.2f} | {ssim:.4f} | {largest:.0f} | {beyond:.2%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
