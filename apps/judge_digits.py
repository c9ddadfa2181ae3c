"""``python -m apps.judge_digits``: how good a generator of digits is, by the eyes of an independent classifier.

The classifier is trained on real MNIST where its weights file is missing. The digits that are judged are the pictures
that `genaim sample` would write: 8-bit RGB, generated in chunks of 64.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps import options
from apps.errors import guarded
from apps.folders import write_json

if TYPE_CHECKING:
    from apps.request import SampleRequest
    from genaim.core.progress import Progress
    from genaim.evaluation.digits import DigitCNN

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CHUNK = 64
REAL_DIGITS = 1000
MIN_ACCURACY = 0.99  # of the classifier, on the whole test split
WANTED = {"agreement": 0.97, "recall": 0.5}  # least figures of a good generator; besides, no two digits are equal


def main() -> None:
    """Runs the command and exits; statuses as those of ``genaim``."""
    raise SystemExit(guarded(lambda: app(prog_name="python -m apps.judge_digits", standalone_mode=False)))


@app.command()
def judge(
    model: Annotated[str, typer.Option(help="Bundled model, model folder or run folder of a generator of digits.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Digits to generate, the classes in turn.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the digits.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")] = None,
    guidance_schedule: options.GuidanceSchedule = None,
    temperature: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off. Default: the model's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is off. Default: the model's.")] = None,
    device: Annotated[str, typer.Option(help="Where to generate: auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "float32",
    judge: Annotated[Path, typer.Option(help="Weights of the classifier; trained where missing.")] = Path(
        "runs/judge/digits.safetensors"
    ),
    data: Annotated[Path | None, typer.Option(help="Folder of MNIST. Default: mnist in $GENAIM_DATA.")] = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="File to write. Default: MODEL.json beside the classifier.")
    ] = None,
) -> None:
    """Judge generated digits: agreement with the asked class, repetitions, precision and recall."""
    from apps.progress import make_progress
    from apps.request import SampleRequest
    from genaim.evaluation.quality import NEIGHBOURS, fidelity
    from genaim.tokenizers import fingerprint

    request = SampleRequest(
        model,
        count=count,
        seed=seed,
        guidance_scale=guidance,
        guidance_schedule=guidance_schedule,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_size=CHUNK,
        device=device,
        dtype=dtype,
    )
    request.check()
    if count <= NEIGHBOURS:
        raise ValueError(f"-n is {count}; recall with k = {NEIGHBOURS} needs more than {NEIGHBOURS} digits.")
    fidelity("metric_prc")  # refuses its absence before digits are generated
    progress = make_progress()
    mnist = mnist_folder(data)
    cnn, test_accuracy = load_or_train(judge, mnist, progress)
    figures = {
        "command": shlex.join(["python", "-m", "apps.judge_digits", *sys.argv[1:]]),
        "judge_weights": fingerprint(cnn),  # another machine trains another judge
        "judge_accuracy": test_accuracy,
        **judge_request(request, cnn, mnist, progress),
    }
    report = report or judge.parent / f"{Path(model).name}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    write_json(report, figures)
    progress.say(summary(figures))
    progress.say(f"written: {report}")


def mnist_folder(given: Path | None) -> Path:
    """The folder of real digits.

    Raises:
        ValueError: If it is not there.
    """
    from genaim.config import data_root

    root = data_root()
    if given is None and root is None:
        raise ValueError("real digits are needed: give --data FOLDER, or set GENAIM_DATA to the folder that has mnist.")
    folder = given or Path(str(root)) / "mnist"
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is not a folder; give --data the folder of MNIST's four files.")
    return folder


def load_or_train(path: Path, mnist: Path, progress: "Progress") -> tuple["DigitCNN", float]:
    """The classifier and its test accuracy.

    Raises:
        ValueError: If it reaches less than 99%.
    """
    from genaim.evaluation.digits import accuracy, load_digit_cnn, load_digits, save_digit_cnn, train_digit_cnn
    from genaim.evaluation.probe_training import steps_of

    if path.exists():
        model, test_accuracy = load_digit_cnn(path)
    else:
        report = steps_of(progress, "training the classifier")
        model = train_digit_cnn(*load_digits(mnist, "train"), report=report)
        progress.stop()
        test_accuracy = accuracy(model, *load_digits(mnist, "test"))
    progress.say(f"classifier: {test_accuracy:.2%} of the MNIST test digits")
    if test_accuracy < MIN_ACCURACY:
        raise ValueError(
            f"the classifier reaches {test_accuracy:.2%} of the test digits, less than {MIN_ACCURACY:.0%}, and is no "
            f"judge; remove '{path}' if it exists, and train on the whole of MNIST."
        )
    if not path.exists():
        save_digit_cnn(path, model, test_accuracy)
    return model, test_accuracy


def judge_request(request: "SampleRequest", cnn: "DigitCNN", mnist: Path, progress: "Progress") -> dict[str, Any]:
    """Generates the digits of a request and judges them.

    Returns:
        Figures and the settings of the sampling, JSON-able.

    Raises:
        ValueError: If the model does not make digits.
    """
    import torch

    from apps.request import resolve
    from apps.sample import draw
    from genaim.core.hardware import pick_device, pick_dtype
    from genaim.data import image_to_tensor
    from genaim.evaluation.digits import IMAGE_SIZE, NUM_CLASSES, load_digits
    from genaim.evaluation.judge import judge_digits
    from genaim.evaluation.neighbours import equal_pairs
    from genaim.pretrained import load_generator
    from genaim.tokenizers import fingerprint
    from samplers import prepare

    target = pick_device(request.device)
    number_format = pick_dtype(request.dtype, target)
    model = load_generator(request.model, device=target)
    side = model.tokenizer.image_size
    if model.config.num_classes != NUM_CLASSES or side != IMAGE_SIZE:
        raise ValueError(
            f"'{request.model}' makes images of {side}x{side} pixels in {model.config.num_classes} classes, not "
            f"{IMAGE_SIZE}x{IMAGE_SIZE} in {NUM_CLASSES}; give a generator of digits."
        )
    settings = resolve(request, model.config, fingerprint(model), target, number_format)
    prepare(model, number_format)
    pictures = list(draw(model, settings, number_format, progress))
    images = torch.stack([image_to_tensor(picture, IMAGE_SIZE) for picture in pictures])
    test, _ = load_digits(mnist, "test", REAL_DIGITS)
    train, _ = load_digits(mnist, "train", len(images))
    figures = judge_digits(cnn, images, torch.tensor(settings["labels"]), test, train)
    return {"model": request.model, **figures, "equal_pairs": equal_pairs(pictures), "settings": _public(settings)}


def summary(figures: dict[str, Any]) -> str:
    """The figures for a reader, with what is wanted."""
    from apps.request import sampling_in_words

    classes = "  ".join(f"{c}: {share:.1%}" for c, share in figures["agreement_per_class"].items())
    settings = figures["settings"]
    missed = [name for name, least in WANTED.items() if figures[name] < least]
    missed += ["equal_pairs"] if figures["equal_pairs"] else []
    return "\n".join(
        [
            f"{figures['model']}, {figures['generated']} digits, seed {settings['seed']}, "
            + sampling_in_words(settings),
            f"agreement   {figures['agreement']:.1%}  (wanted {WANTED['agreement']:.0%})",
            f"            {classes}",
            f"equal pairs {figures['equal_pairs']}  (wanted 0)",
            f"recall      {figures['recall']:.3f}  (wanted {WANTED['recall']:g}; "
            f"real training digits {figures['training_digits_recall']:.3f})",
            f"precision   {figures['precision']:.3f}  "
            f"(real training digits {figures['training_digits_precision']:.3f})",
            f"missed: {', '.join(missed)}" if missed else "all wanted figures are reached",
        ]
    )


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """What a report says of the sampling; the labels follow from the count."""
    return {name: value for name, value in settings.items() if name not in ("model", "labels", "names")}


if __name__ == "__main__":
    main()
