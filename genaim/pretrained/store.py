"""Models by name, and on disk: a folder with ``config.json`` and safetensors weights, or a training's run folder.

MODEL/config.json            kind, configs, and the tokenizer's name and changed keys when it is shared
MODEL/model.safetensors      weights of the generator, encoder or tokenizer, whichever the model is
MODEL/tokenizer/             the generator's tokenizer, unless it is shared
MODEL/probe/                 what reads classes off the encoder's features, if there is one
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genaim.config import nearest, validate
from genaim.core.progress import Progress
from genaim.models import ENCODERS, MODELS, AttentiveProbe, AttentiveProbeConfig, Encoder, GenerativeModel
from genaim.pretrained.fetch import fetch
from genaim.pretrained.hub import hub_folder
from genaim.pretrained.official import OFFICIAL
from genaim.pretrained.ready import ready_tokenizer
from genaim.pretrained.save import FORMAT
from genaim.tokenizers import TOKENIZERS, ReadyConfig, Tokenizer

CONFIG_KEYS = {
    "generator": {"model", "tokenizer"},
    "tokenizer": {"tokenizer"},
    "encoder": {"model"},
    "probe": {"model"},
}
A_KIND = {"generator": "a generator", "tokenizer": "a tokenizer", "encoder": "an encoder", "probe": "a probe"}
ModuleT = TypeVar("ModuleT", bound=nn.Module)
BUNDLED = Path(__file__).parent / "bundled"


def bundled() -> dict[str, Path]:
    """Folders of the models that come with the package, by name."""
    return {p.parent.name: p.parent for p in sorted(BUNDLED.glob("*/config.json"))}


def bundled_generators() -> dict[str, dict[str, Any]]:
    """Model configs, not validated, of the generators among them, by name."""
    configs = {name: read_config(folder) for name, folder in bundled().items()}
    return {name: config["model"] for name, config in configs.items() if config["kind"] == "generator"}


def find(name: str, progress: Progress | None = None) -> Path:
    """The folder of a model.

    Args:
        name: A bundled model, a model folder or run folder, an official checkpoint (downloaded and converted the first
            time), or ``owner/name`` on the Hub.
        progress: Where downloads tell their course; None prints lines on standard error.

    Raises:
        ValueError: If there is no such model, or it cannot be downloaded.
    """
    if name in bundled():
        return bundled()[name]
    folder = Path(name)
    if _holds_model(folder):
        return folder
    if name in OFFICIAL:
        return fetch(name, progress)
    if folder.is_file():
        raise ValueError(
            f"'{name}' is a file; give the name of a model, a model folder or a run folder. "
            "(An official checkpoint becomes a folder with genaim convert.)"
        )
    if folder.is_dir():
        raise ValueError(f"folder '{name}' holds no model: it has neither config.json nor a run's config.yaml.")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not folder.parent.exists():
        return hub_folder(name)
    known = [*bundled(), *OFFICIAL]
    raise ValueError(f"model '{name}' is neither bundled nor a folder, nor official; {nearest(name, known)}.")


def is_named(name: str) -> bool:
    """Whether `find` takes a name as that of a bundled, official or shared model, and not of a folder."""
    return name in bundled() or not _holds_model(Path(name))


def _holds_model(folder: Path) -> bool:
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


def load_tokenizer(
    name: str | ReadyConfig, *, device: torch.device | str = "cpu", progress: Progress | None = None
) -> Tokenizer:
    """A tokenizer by a name or folder that `find` takes (that of a generator gives its tokenizer).

    A config says by itself where its weights are, if it has any.

    Raises:
        ValueError: If it cannot be found or read, or has none.
    """
    if not isinstance(name, str):
        return ready_tokenizer(name).to(device)
    folder = find(name, progress)
    config = read_config(folder)
    if config["kind"] not in ("tokenizer", "generator"):
        what = A_KIND[config["kind"]]
        raise ValueError(f"'{name}' is {what}, which has no tokenizer; give a tokenizer or a generator.")
    changes: dict[str, Any] = {}
    if config["kind"] == "generator":
        changes = config.get("tokenizer_changes", {})
        folder = _tokenizer_folder(folder, config, progress)
        config = read_config(folder)
    tokenizer = build_tokenizer(config["tokenizer"] | changes, str(folder))
    return _build(tokenizer, _weights(folder, config), folder).to(device)


def load_generator(
    name: str, *, device: torch.device | str = "cpu", progress: Progress | None = None
) -> GenerativeModel:
    """A generator with its tokenizer, by a name or folder that `find` takes.

    Raises:
        ValueError: If it cannot be found or read, or is no generator.
    """
    folder = find(name, progress)
    config = read_config(folder)
    if config["kind"] != "generator":
        what, names = A_KIND[config["kind"]], ", ".join(bundled_generators())
        raise ValueError(f"'{name}' is {what}, which cannot generate; bundled generators: {names}.")
    model = build_generator(config["model"], load_tokenizer(str(folder), progress=progress), str(folder))
    return _build(model, _weights(folder, config), folder).to(device)


def load_encoder(name: str, *, device: torch.device | str = "cpu", progress: Progress | None = None) -> Encoder:
    """An encoder by a name or folder that `find` takes.

    Raises:
        ValueError: If it cannot be found or read, or is no encoder.
    """
    folder = find(name, progress)
    config = read_config(folder)
    if config["kind"] != "encoder":
        raise ValueError(f"'{name}' is {A_KIND[config['kind']]}, not an encoder; give an encoder's folder.")
    encoder: Encoder = _make(ENCODERS, "encoder", {"kind": "aim"} | config["model"], str(folder))
    return _build(encoder, _weights(folder, config), folder).to(device)


def load_probe(name: str, *, device: torch.device | str = "cpu", progress: Progress | None = None) -> AttentiveProbe:
    """The probe of an encoder, by a name or folder that `find` takes; its classes are those of the official heads.

    Raises:
        ValueError: If it cannot be found or read, or the encoder has none.
    """
    folder = find(name, progress)
    config = read_config(folder)
    if config["kind"] == "encoder" and (folder / "probe").is_dir():
        folder = folder / "probe"
        config = read_config(folder)
    if config["kind"] != "probe":
        raise ValueError(f"'{name}' is {A_KIND[config['kind']]} without a probe; official AIM v1 encoders have one.")
    probe = AttentiveProbe(validate(AttentiveProbeConfig, config["model"], str(folder)))
    return _build(probe, _weights(folder, config), folder).to(device)


def from_pretrained(
    name: str | Path, *, device: torch.device | str = "cpu", progress: Progress | None = None
) -> GenerativeModel | Encoder | Tokenizer:
    """A generator, encoder or tokenizer, whichever it is, by a name or folder that `find` takes.

    Raises:
        ValueError: If it cannot be found or read, or is a probe.
    """
    folder = str(find(str(name), progress))
    kind = read_config(Path(folder))["kind"]
    if kind == "tokenizer":
        return load_tokenizer(folder, device=device, progress=progress)
    if kind == "encoder":
        return load_encoder(folder, device=device, progress=progress)
    return load_generator(folder, device=device, progress=progress)


def build_generator(config: dict[str, Any], tokenizer: Tokenizer, source: str) -> GenerativeModel:
    """A generator with fresh weights, from its config as read from ``source``."""
    model: GenerativeModel = _make(MODELS, "model", config, source, tokenizer)
    return model


def build_tokenizer(config: dict[str, Any], source: str) -> Tokenizer:
    """A tokenizer with fresh weights, from its config as read from ``source``."""
    tokenizer: Tokenizer = _make(TOKENIZERS, "tokenizer", config, source)
    return tokenizer


def _make(registry: Mapping[Any, Any], what: str, config: dict[str, Any], source: str, *parts: nn.Module) -> Any:
    """What a registry of (config class, class) pairs builds of a config and its parts."""
    kind = config.get("kind")
    if kind not in registry:
        raise ValueError(f"{source}: unknown {what} kind {kind!r}; {nearest(str(kind), registry)}.")
    config_class, module_class = registry[kind]
    return module_class(validate(config_class, config, source), *parts)


def _tokenizer_folder(folder: Path, config: dict[str, Any], progress: Progress | None) -> Path:
    """Where the tokenizer of a generator's folder is."""
    name: str = config["tokenizer"]
    if name in bundled():
        return bundled()[name]
    return fetch(name, progress) if name in OFFICIAL else folder / name


def _weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    files = config.get("weights", [folder / "model.safetensors"])
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            state |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as safetensors ({' '.join(str(error).split())}).") from None
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _build(module: ModuleT, state: dict[str, Tensor], folder: Path) -> ModuleT:
    if isinstance(module, GenerativeModel):
        state |= {f"tokenizer.{k}": v for k, v in module.tokenizer.state_dict().items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its config: {' '.join(str(error).split())[:300]}"
        ) from None
    return module.eval()
