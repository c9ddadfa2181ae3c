"""``python -m apps.judge_inpaint``: how good models complete held-out emoji, beside fills that need no model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apps import options
from apps.errors import guarded
from apps.folders import make_parent, write_json
from apps.held_out import EMOJI_SIDE, held_out_emoji, row_names
from genaim.files import file_written_whole

if TYPE_CHECKING:
    from torch import Tensor

    from apps.request import SampleRequest
    from genaim.core.progress import Progress
    from genaim.evaluation.cifar import CifarResNet

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BATCH = 20  # images; times the results of each
SHOWN = 12


def main() -> None:
    """Runs the command and exits; statuses as those of ``genaim``."""
    raise SystemExit(guarded(lambda: app(prog_name="python -m apps.judge_inpaint", standalone_mode=False)))


@app.command()
def judge(
    models: Annotated[list[str], typer.Option("--model", help="Model of 64x64 emoji; may be given several times.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Emoji, evenly over the test split.")] = 100,
    samples: Annotated[int, typer.Option(help="Results of each.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of holes and results.")] = 0,
    classes: Annotated[bool, typer.Option(help="Tell the model the class of the emoji.")] = True,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")] = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    device: Annotated[str, typer.Option(help="Where to generate: auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "float32",
    data: Annotated[
        Path | None, typer.Option(help="Folder of noto_emoji and classifiers. Default: $GENAIM_DATA.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Picture to write: emoji, holes, fills and results.")] = None,
) -> None:
    """Complete emoji with random free-form holes of 10% to 50%: PSNR inside the hole, Frechet distance, diversity."""
    import torch
    from PIL import Image

    from apps.progress import make_progress
    from apps.request import SampleRequest
    from genaim.config import data_root
    from genaim.evaluation.cifar import load_cifar_resnet
    from genaim.evaluation.inpainting import FILLS, best_of, diversity, free_form_holes

    root = data or data_root()
    if root is None:
        raise ValueError("emoji are needed: give --data FOLDER, or set GENAIM_DATA to the folder that has noto_emoji.")
    if min(count, samples) < 2:
        raise ValueError(f"-n is {count} and --samples {samples}; distance and diversity need 2 or more of each.")
    if sheet is not None and sheet.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--sheet is '{sheet}', which ends in no format of pictures; use .png.")
    for file in filter(None, (report, sheet)):
        make_parent(file)
    progress = make_progress()
    extractor = load_cifar_resnet(Path(root) / "classifiers" / "cifar10_resnet56.safetensors")
    images, labels = held_out_emoji(Path(root), count)
    keep = free_form_holes(len(images), EMOJI_SIDE, seed)
    rows = {name: measure(images, fill(images, keep), keep, extractor) for name, fill in FILLS.items()}
    columns = [images, torch.where(keep.unsqueeze(1), images, torch.zeros(()))]
    columns += [fill(images[:SHOWN], keep[:SHOWN]) for fill in FILLS.values()]
    for model, name in row_names(models).items():
        request = SampleRequest(
            model,
            count=samples,
            seed=seed,
            guidance_scale=guidance,
            guidance_schedule=guidance_schedule,
            temperature=temperature,
            device=device,
            dtype=dtype,
        )
        request.check()
        results = complete_all(request, images, keep, labels if classes else None, progress)
        rows[f"{name}, one"] = measure(images, results[:, 0], keep, extractor)
        rows[f"{name}, one"]["diversity"] = diversity(results).mean().item()
        rows[f"{name}, best of {samples}"] = measure(images, best_of(images, results), keep, extractor)
        rows[f"{name}, mean of {samples}"] = measure(images, results.mean(1), keep, extractor)
        columns += list(results[:SHOWN, :3].unbind(1))
    progress.say(table(rows))
    if report is not None:
        write_json(report, rows)
    if sheet is not None:
        from genaim.data.grid import contact_sheet

        pictures = torch.stack([column[:SHOWN] for column in columns], dim=1).flatten(0, 1)
        with file_written_whole(sheet) as temporary:
            contact_sheet(pictures, columns=len(columns)).save(temporary)


def complete_all(
    request: "SampleRequest", images: "Tensor", keep: "Tensor", labels: "Tensor | None", progress: "Progress"
) -> "Tensor":
    """Several results of every image, (n, results, 3, 64, 64).

    Raises:
        ValueError: If the model does not make images of this size.
    """
    import torch

    from apps.request import resolve, sampling_arguments
    from genaim.core.hardware import pick_device, pick_dtype
    from genaim.pretrained import load_generator
    from samplers.inpaint import complete
    from samplers.prepare import prepare

    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device)
    model = load_generator(request.model, device=device)
    if model.tokenizer.image_size != EMOJI_SIDE:
        raise ValueError(f"'{request.model}' makes images of {model.tokenizer.image_size} pixels, not {EMOJI_SIDE}.")
    settings = resolve(request, model.config, "", device, dtype)
    if labels is None:
        settings["guidance_scale"] = 1.0
    prepare(model, dtype)
    null = model.config.num_classes
    told = labels if labels is not None and null else torch.full((len(images),), null)
    results, n = [], request.count
    progress.start(f"completing with {Path(request.model).name}", 0, len(images))
    for first in range(0, len(images), BATCH):
        rows = slice(first, first + BATCH)
        painted = complete(
            model,
            *(x[rows].repeat_interleave(n, 0) for x in (images, keep, told)),
            first_index=first * n,
            **sampling_arguments(settings, dtype),
        )
        results.append(painted.unflatten(0, (-1, n)).cpu())
        progress.advance(min(first + BATCH, len(images)), {})
    progress.stop()
    return torch.cat(results)


def table(rows: "dict[str, dict[str, float]]") -> str:
    """The figures as Markdown."""
    lines = ["| | PSNR in the hole, dB | Frechet distance | diversity, levels |", "|---|---|---|---|"]
    for name, row in rows.items():
        spread = f"{row['diversity']:.1f}" if "diversity" in row else ""
        lines.append(f"| {name} | {row['psnr']:.2f} | {row['frechet']:.3f} | {spread} |")
    return "\n".join(lines)


def measure(images: "Tensor", completed: "Tensor", keep: "Tensor", extractor: "CifarResNet") -> dict[str, float]:
    """PSNR inside the holes, and the Frechet distance of whole images to the true ones."""
    import torch

    from genaim.evaluation.inpainting import hole_psnr
    from genaim.evaluation.quality import frechet_distance

    with torch.no_grad():
        distance = frechet_distance(extractor.features(completed), extractor.features(images))
    return {"psnr": hole_psnr(images, completed, keep).mean().item(), "frechet": distance}


if __name__ == "__main__":
    main()
