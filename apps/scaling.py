"""`genaim scaling`: trains a recipe at several sizes and data sizes, and fits power laws to the validation losses.

STUDY/study.json                     the recipe and the grid; the same command goes on, another one is refused
STUDY/w64d4-n1000/                   the run folder of a point: size and number of images
STUDY/results.json, results.md       every point and every fit
STUDY/scaling.png                    loss against steps, parameters, data and compute
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

import genaim
from apps.errors import Stopped
from apps.folders import read_json, write_json, write_text
from apps.plots import need_matplotlib
from apps.progress import make_progress
from apps.scaling_grid import GridPoint, make_grid
from apps.scaling_results import as_markdown, draw
from genaim.config import find_recipe, load_config
from genaim.core.progress import Progress
from genaim.evaluation.compute import count_parameters, training_flops
from genaim.evaluation.study import Series, StudyPoint, study_series
from genaim.models import MODELS, GenerativeModel
from genaim.pretrained import load_tokenizer, save_model
from genaim.tokenizers import fingerprint
from genaim.training.checkpoint import checkpoints, load_state
from genaim.training.config import GeneratorRunConfig, parse_run
from genaim.training.run import train as run_training
from genaim.training.run_folder import WHERE_AND_HOW, changed_keys
from genaim.training.trainer import Interrupted, end_processes

VALIDATIONS = 10  # of every point, unless the command says otherwise


@dataclass(frozen=True)
class ScalingRequest:
    """The arguments of the command."""

    recipe: str
    overrides: tuple[str, ...]
    sizes: tuple[str, ...]
    """Such as w64d4, or presets."""
    data: tuple[str, ...]
    """Shares or numbers of the training images."""
    budget: int
    """Steps of every point."""
    out: Path | None = None
    """Folder of the study; None makes one beside the recipe's run."""

    @property
    def command(self) -> str:
        """The command line that repeats it."""
        grid = ["--sizes", ",".join(self.sizes), "--data", ",".join(self.data), "--budget", str(self.budget)]
        out = [] if self.out is None else ["--out", str(self.out)]
        return shlex.join(["genaim", "scaling", self.recipe, *self.overrides, *grid, *out])


def scaling(request: ScalingRequest) -> Path:
    """Trains what is missing of the grid, then fits and draws.

    Returns:
        The study's folder.

    Raises:
        Stopped: After an interruption, with the state saved.
        ValueError: If the recipe or the grid cannot be used, or the folder holds another study.
    """
    need_matplotlib()
    recipe = read_recipe(request)
    out = request.out or Path(f"{recipe['folder']}/{recipe['name']}-scaling")
    recipe["folder"] = str(out)
    config = generator_config(recipe, request)
    grid = make_grid(recipe, config, request.sizes, request.data)
    progress = make_progress()
    weights = fingerprint(load_tokenizer(config.tokenizer, progress=progress))
    settle_study(out, config.model_copy(update={"tokenizer_weights": weights}), grid)
    try:
        for number, point in enumerate(grid, 1):
            what = f"point {number} of {len(grid)}: {point.size}, {point.images} images"
            if is_finished(point.config):
                progress.say(f"{what}, is finished")
                continue
            progress.say(f"{what}, {config.steps} steps of {config.batch_size}")
            train_point(with_latent_scale(point.config, grid), progress)
    except Interrupted as interrupted:
        raise Stopped(f"{interrupted} It was: {request.command}") from None
    finally:
        progress.stop()
    end_processes()
    if is_main():
        write_results(out, request, config, grid)
    return out


def read_recipe(request: ScalingRequest) -> dict[str, Any]:
    """The raw recipe of every point, but for size, data and name.

    Raises:
        ValueError: If it cannot be read.
    """
    recipe = load_config(find_recipe(request.recipe), request.overrides)
    recipe.setdefault("folder", "runs")
    recipe.setdefault("name", Path(request.recipe).stem)
    recipe["steps"] = request.budget
    if not any(o.startswith("validate_every=") for o in request.overrides):
        recipe["validate_every"] = max(request.budget // VALIDATIONS, 1)
    return recipe


def generator_config(recipe: dict[str, Any], request: ScalingRequest) -> GeneratorRunConfig:
    """The validated recipe.

    Raises:
        ValueError: If it trains no generator, is not validated, or is too short.
    """
    if request.budget < 1:
        raise ValueError(f"--budget is {request.budget}; give the steps of every point, 1 or more.")
    config = parse_run(recipe, request.recipe)
    if not isinstance(config, GeneratorRunConfig):
        raise ValueError(f"'{request.recipe}' trains a {config.kind}, and a scaling study needs a generator's recipe.")
    if not config.data.val:
        raise ValueError(f"'{request.recipe}' names no validation data, which a study measures on; add data.val.")
    warmup = config.optimizer.warmup_steps
    if config.steps <= warmup:
        raise ValueError(
            f"--budget is {config.steps} steps, and optimizer.warmup_steps alone are {warmup}; raise the one or lower "
            "the other."
        )
    return config


def settle_study(out: Path, config: GeneratorRunConfig, grid: Sequence[GridPoint]) -> None:
    """Writes what the study is, or checks that the folder holds the same one, or a part of it.

    Raises:
        ValueError: If the folder holds something else.
    """
    path = out / "study.json"
    names = [point.config.name for point in grid]
    if path.is_file():
        before = read_study(path)
        # a point is measured by the lowest of its validations
        changed = changed_keys(before["recipe"], config, WHERE_AND_HOW - {"validate_every"})
        if changed:
            key = next(iter(changed))
            what = "--budget" if key == "steps" else f"'{key}'"
            raise ValueError(f"{out} holds a study with another {what}; choose another --out, or remove the folder.")
        missing = [name for name in before["points"] if name not in names]
        if missing:
            raise ValueError(
                f"{out} holds a study of a grid with {missing[0]}, which --sizes and --data leave out; a study can "
                "grow, but for another grid choose another --out."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no scaling study; choose another --out.")
    if is_main():
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, {"recipe": config.model_dump(mode="json"), "points": names})


def read_study(path: Path) -> dict[str, Any]:
    """What `settle_study` wrote.

    Raises:
        ValueError: If the file is something else.
    """
    study = read_json(path)
    if not isinstance(study, dict) or study.keys() != {"recipe", "points"}:
        raise ValueError(f"'{path}' is not the file of a scaling study; choose another --out.")
    return study


def is_finished(config: GeneratorRunConfig) -> bool:
    """Whether the run of a point has done its last step."""
    found = checkpoints(run_folder(config))
    return bool(found) and load_state(found[-1])["step"] >= config.steps


def run_folder(config: GeneratorRunConfig) -> Path:
    """Where the run of a point is."""
    return Path(config.folder) / config.name


def with_latent_scale(config: GeneratorRunConfig, grid: Sequence[GridPoint]) -> GeneratorRunConfig:
    """The recipe with the latent scale that a run before it measured, if any did: losses compare at one scale only."""
    for point in grid:
        path = run_folder(point.config) / "config.yaml"
        scale = yaml.safe_load(path.read_text())["latent_scale"] if path.is_file() else None
        if scale is not None:
            return config.model_copy(update={"latent_scale": scale})
    return config


def train_point(config: GeneratorRunConfig, progress: Progress) -> None:
    """Trains one point, or goes on where it was interrupted; without pictures."""
    tokenizer = load_tokenizer(config.tokenizer, progress=progress)
    run_training(config, progress, tokenizer=tokenizer, store_tokenizer=save_model)


def model_of(point: GridPoint) -> GenerativeModel:
    """The model of a finished point before its training, for counting."""
    folder = run_folder(point.config)
    config = parse_run(yaml.safe_load((folder / "config.yaml").read_text()), str(folder))
    assert isinstance(config, GeneratorRunConfig)
    plain = {"attention_backend": "sdpa", "gradient_checkpointing": False}
    model_class: Any = MODELS[config.model.kind][1]
    model: GenerativeModel = model_class(
        config.model.model_copy(update=plain), load_tokenizer(str(folder / "tokenizer"))
    )
    return model


def measured(grid: Sequence[GridPoint]) -> list[StudyPoint]:
    """The figures of a finished grid; what a size costs is counted once."""
    points, costs = [], dict[str, dict[str, Any]]()
    for point in grid:
        if point.size not in costs:
            model = model_of(point)
            parameters = count_parameters(model)
            costs[point.size] = {
                "parameters": parameters.total,
                "transformer_parameters": parameters.transformer,
                "flops_per_step": training_flops(model) * point.config.batch_size,
                "loss_unit": model.head.loss_unit,
            }
        lines = (run_folder(point.config) / "metrics.jsonl").read_text().splitlines()
        curve = [(row["step"], row["val/loss"]) for row in map(json.loads, lines) if "val/loss" in row]
        steps, losses = zip(*curve, strict=True)
        points.append(StudyPoint(size=point.size, images=point.images, steps=steps, losses=losses, **costs[point.size]))
    return points


def write_results(out: Path, request: ScalingRequest, config: GeneratorRunConfig, grid: Sequence[GridPoint]) -> None:
    """Writes results.json, results.md and scaling.png; the validations of the warm-up are left out."""
    points = [point.after(config.optimizer.warmup_steps) for point in measured(grid)]
    states = [load_state(checkpoints(run_folder(point.config))[-1]) for point in grid]
    series = study_series(points)
    record: dict[str, Any] = {
        "genaim": genaim.__version__,
        "command": request.command,
        "budget_steps": config.steps,
        "batch_size": config.batch_size,
        "warmup_steps": config.optimizer.warmup_steps,
        "seed": config.seed,
        "loss_unit": points[0].loss_unit,
        "machines": list({json.dumps(state["machine"]): state["machine"] for state in states}.values()),
        "points": [
            {**asdict(p), "lowest": p.lowest, "lowest_step": p.lowest_step, "seconds": state["seconds"]}
            for p, state in zip(points, states, strict=True)
        ],
        "fits": [fit_record(s) for s in series],
    }
    write_json(out / "results.json", record)
    write_text(out / "results.md", as_markdown(record))
    draw(points, series, out / "scaling.png")


def fit_record(series: Series) -> dict[str, Any]:
    """A series and its law for the record."""
    record: dict[str, Any] = {"against": series.against, "of": series.of, "x": series.x, "loss": series.loss}
    return record | ({"problem": series.problem} if series.law is None else series.law._asdict())


def is_main() -> bool:
    """Whether this is the first of the processes."""
    return os.environ.get("RANK", "0") == "0"
