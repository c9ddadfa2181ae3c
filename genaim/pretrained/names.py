"""Models by name, and what their configs say; loads no weights, and no torch, so that a wrong name is told at once.

A model is a folder with ``config.json`` and safetensors weights, or a training's run folder:

MODEL/config.json            kind, configs, and the tokenizer's name and changed keys when it is shared
MODEL/model.safetensors      weights of the generator, encoder or tokenizer, whichever the model is
MODEL/tokenizer/             the generator's tokenizer, unless it is shared
MODEL/probe/                 what reads classes off the encoder's features, if there is one
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genaim.config import nearest, recipes
from genaim.pretrained.official import OFFICIAL

FORMAT = 1
"""Version of ``config.json``."""
CONFIG_KEYS = {
    "generator": {"model", "tokenizer"},
    "tokenizer": {"tokenizer"},
    "encoder": {"model"},
    "probe": {"model"},
}
A_KIND = {"generator": "a generator", "tokenizer": "a tokenizer", "encoder": "an encoder", "probe": "a probe"}
BUNDLED = Path(__file__).parent / "bundled"
RUNS = "runs"
"""Where training writes run folders unless a recipe says otherwise."""


def bundled() -> dict[str, Path]:
    """Folders of the models that come with the package, by name."""
    return {p.parent.name: p.parent for p in sorted(BUNDLED.glob("*/config.json"))}


def bundled_generators() -> dict[str, dict[str, Any]]:
    """Model configs, not validated, of the generators among them, by name."""
    configs = {name: read_config(folder) for name, folder in bundled().items()}
    return {name: config["model"] for name, config in configs.items() if config["kind"] == "generator"}


def locate(name: str, *kinds: str) -> Path | None:
    """The folder of a model, or None where it must be downloaded first; downloads nothing.

    Args:
        name: A bundled model, a model folder or run folder, an official checkpoint, or ``owner/name`` on the Hub. What
            looks like a path (`is_path`) is one.
        kinds: What it may be: generator, tokenizer, encoder or probe; none given takes any.

    Raises:
        ValueError: If there is no such model or it is of another kind, as far as can be told without the network.
    """
    folder = bundled().get(name) or Path(name).expanduser()
    if holds_model(folder):
        if kinds:
            check_kind(name, read_config(folder)["kind"], kinds)
        return folder
    if name in OFFICIAL:
        check_kind(name, OFFICIAL[name].kind, kinds)
        return None
    if folder.is_file():
        raise ValueError(
            f"'{name}' is a file; give the name of a model, a model folder or a run folder. "
            "(An official checkpoint becomes a folder with genaim convert.)"
        )
    if folder.is_dir():
        raise ValueError(f"folder '{name}' holds no model: it has neither config.json nor a run's config.yaml.")
    near = models_near(folder, kinds)
    if is_path(name):
        advice = nearest(name, near) if near else "give one that training or genaim convert has written"
        if folder.name in bundled():
            advice = f"make it by genaim train {folder.name}, or take the bundled '{folder.name}'"
        elif folder.name in recipes():
            advice = f"make it by genaim train {folder.name}"
        raise ValueError(f"there is no folder '{name}'; {advice}.")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return None
    known = [*names_of(kinds), *near]
    raise ValueError(f"model '{name}' is neither bundled nor a folder, nor official; {nearest(name, known)}.")


def check_kind(name: str, kind: str, kinds: Sequence[str]) -> None:
    """Raises ValueError for a model of another kind than those that are asked for, and names some of these."""
    if kinds and kind not in kinds:
        wanted, known = " or ".join(A_KIND[k] for k in kinds), nearest(name, names_of(kinds))
        raise ValueError(f"'{name}' is {A_KIND[kind]}, not {wanted}; {known}; or give the folder of one.")


def names_of(kinds: Sequence[str]) -> list[str]:
    """Names of the bundled and official models, of all kinds if none is given."""
    found = {name: read_config(folder)["kind"] for name, folder in bundled().items()}
    found |= {name: row.kind for name, row in OFFICIAL.items()}
    return [name for name, kind in found.items() if not kinds or kind in kinds]


def is_path(name: str) -> bool:
    """Whether a name is that of a folder, there or not, and not ``owner/name`` on the Hub.

    So it is if it begins as paths do or as training writes them, has more parts, or its first one is a folder here.
    """
    begins = name.startswith(("/", "./", "../", "~", f"{RUNS}/"))
    return begins or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


def models_near(folder: Path, kinds: Sequence[str]) -> list[str]:
    """Model and run folders beside a folder, and where training writes them."""
    places = dict.fromkeys([folder.parent, Path(RUNS)])
    return [str(path) for place in places for path in sorted(place.glob("*")) if _is_of(path, kinds)]


def _is_of(folder: Path, kinds: Sequence[str]) -> bool:
    """Whether a folder holds a model of a kind; one that cannot be read holds none."""
    try:
        return holds_model(folder) and (read_config(folder)["kind"] in kinds or not kinds)
    except ValueError:
        return False


def is_named(name: str) -> bool:
    """Whether `locate` takes a name as that of a bundled, official or shared model, and not of a folder."""
    return name in bundled() or not holds_model(Path(name).expanduser())


def holds_model(folder: Path) -> bool:
    """Whether a folder is that of a model or of a run."""
    return (folder / "config.json").is_file() or (folder / "config.yaml").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """``kind``, ``model`` and ``tokenizer`` of a model folder or run folder.

    Raises:
        ValueError: If the file cannot be read or is of another version.
    """
    path = folder / "config.json"
    if not path.is_file():
        return _read_run(folder)
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); save the model again.") from None
    if isinstance(config, dict) and "Autoencoder" in str(config.get("_class_name")):
        raise ValueError(
            f"{path} is of an autoencoder of diffusers; a recipe takes it as tokenizer.kind=diffusers, "
            f"tokenizer.source={folder} and tokenizer.image_size."
        )
    if not isinstance(config, dict) or config.get("format") != FORMAT or not _is_whole(config):
        raise ValueError(f"{path} is not a genaim model of format {FORMAT}; give a folder that genaim has saved.")
    return config


def _is_whole(config: Any) -> bool:
    """Whether a config says what it is of, and has that kind's keys."""
    wanted = CONFIG_KEYS.get(str(config.get("kind"))) if isinstance(config, dict) else None
    return wanted is not None and wanted <= config.keys()


def _read_run(folder: Path) -> dict[str, Any]:
    import yaml

    try:
        run = yaml.safe_load((folder / "config.yaml").read_text())
    except FileNotFoundError:
        raise ValueError(
            f"'{folder}' holds neither config.json nor config.yaml; give a model folder or run folder."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        run = None
    if not _is_whole(run):
        raise ValueError(
            f"{folder / 'config.yaml'} is not the config of a genaim run; give a model folder or run folder."
        )
    config = {"kind": run["kind"], "weights": run_weights(folder)}
    if run["kind"] == "tokenizer":
        return config | {"tokenizer": run["tokenizer"]}
    if run["kind"] == "encoder":
        return config | {"model": run["model"]}
    return config | {"model": run["model"], "tokenizer": "tokenizer"}


def run_weights(folder: Path) -> list[Path]:
    """Weight files of a run's newest checkpoint, averaged weights last.

    Raises:
        ValueError: If the run has saved nothing yet.
    """
    found = sorted((folder / "checkpoints").glob("step-*/state.json"))
    if not found:
        raise ValueError(f"run folder '{folder}' has no checkpoint yet; train it first.")
    return [found[-1].parent / f"{stem}.safetensors" for stem in ("weights", "ema")]
