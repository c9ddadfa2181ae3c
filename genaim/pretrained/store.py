"""Models on disk: a folder with ``config.json`` and safetensors weights, or the run folder of a training.

MODEL/config.json            kind, configs, and the tokenizer's name when it is shared
MODEL/model.safetensors      weights of the generator, encoder or tokenizer, whichever the model is
MODEL/tokenizer/             the generator's tokenizer, unless it is shared
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genaim.config import nearest, validate
from genaim.models import ENCODERS, MODELS, Encoder, GenerativeModel
from genaim.pretrained.ready import ready_tokenizer
from genaim.tokenizers import TOKENIZERS, ReadyConfig, Tokenizer

FORMAT = 1
CONFIG_KEYS = {"generator": {"model", "tokenizer"}, "tokenizer": {"tokenizer"}, "encoder": {"model"}}
A_KIND = {"generator": "a generator", "tokenizer": "a tokenizer", "encoder": "an encoder"}
ModuleT = TypeVar("ModuleT", bound=nn.Module)
BUNDLED = Path(__file__).parent / "bundled"


def bundled() -> dict[str, Path]:
    """Folders of the models that come with the package, by name."""
    return {p.parent.name: p.parent for p in sorted(BUNDLED.glob("*/config.json"))}


def find(name: str) -> Path:
    """The folder of a bundled model or of a path.

    Raises:
        ValueError: If neither is there.
    """
    if name in bundled():
        return bundled()[name]
    folder = Path(name)
    if (folder / "config.json").is_file() or (folder / "config.yaml").is_file():
        return folder
    if folder.is_file():
        raise ValueError(f"'{name}' is a file; give the name of a bundled model, a model folder or a run folder.")
    if folder.is_dir():
        raise ValueError(f"folder '{name}' holds no model: it has neither config.json nor a run's config.yaml.")
    raise ValueError(f"model '{name}' is neither bundled nor a folder; {nearest(name, bundled())}.")


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


def load_tokenizer(name: str | ReadyConfig, *, device: torch.device | str = "cpu") -> Tokenizer:
    """A tokenizer by bundled name, model folder or run folder (a generator's folder gives its tokenizer).

    A config says by itself where its weights are, if it has any.

    Raises:
        ValueError: If it cannot be found or read, or is an encoder.
    """
    if not isinstance(name, str):
        return ready_tokenizer(name).to(device)
    folder = find(name)
    config = read_config(folder)
    if config["kind"] == "encoder":
        raise ValueError(f"'{name}' is an encoder, which has no tokenizer; give a tokenizer or a generator.")
    if config["kind"] == "generator":
        return load_tokenizer(_tokenizer_of(folder, config), device=device)
    return _build(_tokenizer(config["tokenizer"], str(folder)), _weights(folder, config), folder).to(device)


def load_generator(name: str, *, device: torch.device | str = "cpu") -> GenerativeModel:
    """A generator with its tokenizer, by bundled name, model folder or run folder.

    Raises:
        ValueError: If it cannot be found or read, or is no generator.
    """
    folder = find(name)
    config = read_config(folder)
    if config["kind"] != "generator":
        generators = [n for n, p in bundled().items() if read_config(p)["kind"] == "generator"]
        what = A_KIND[config["kind"]]
        raise ValueError(f"'{name}' is {what}, which cannot generate; bundled generators: {', '.join(generators)}.")
    tokenizer = load_tokenizer(_tokenizer_of(folder, config))
    model = build_generator(config["model"], tokenizer, str(folder))
    return _build(model, _weights(folder, config), folder).to(device)


def load_encoder(name: str, *, device: torch.device | str = "cpu") -> Encoder:
    """An encoder by bundled name, model folder or run folder.

    Raises:
        ValueError: If it cannot be found or read, or is no encoder.
    """
    folder = find(name)
    config = read_config(folder)
    if config["kind"] != "encoder":
        raise ValueError(f"'{name}' is {A_KIND[config['kind']]}, not an encoder; give an encoder's folder.")
    kind = config["model"].get("kind", "aim")
    if kind not in ENCODERS:
        raise ValueError(f"{folder}: unknown encoder kind {kind!r}; {nearest(str(kind), ENCODERS)}.")
    config_class, encoder_class = ENCODERS[kind]
    build: Any = encoder_class
    encoder: Encoder = build(validate(config_class, config["model"], str(folder)))
    return _build(encoder, _weights(folder, config), folder).to(device)


def build_generator(config: dict[str, Any], tokenizer: Tokenizer, source: str) -> GenerativeModel:
    """A generator with fresh weights, from its config as read from ``source``."""
    kind = config.get("kind")
    if kind not in MODELS:
        raise ValueError(f"{source}: unknown model kind {kind!r}; {nearest(str(kind), MODELS)}.")
    config_class, model_class = MODELS[kind]
    build: Any = model_class
    model: GenerativeModel = build(validate(config_class, config, source), tokenizer)
    return model


def save_model(
    folder: Path,
    module: GenerativeModel | Encoder | Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    shared_tokenizer: str | None = None,
) -> None:
    """Writes a model folder, whole or not at all.

    Args:
        folder: Where to; an existing model there is replaced.
        module: Generator, encoder or tokenizer.
        dtype: Format of the stored weights.
        shared_tokenizer: Name of a bundled tokenizer to refer to, instead of a copy.

    Raises:
        ValueError: If the folder holds something else than a model.
    """
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise ValueError(f"folder '{folder}' holds other files than a model; choose another one, or empty it.")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if isinstance(module, GenerativeModel):
        state = module.state_dict_without_tokenizer()
        config = {
            "kind": "generator",
            "model": module.config.model_dump(mode="json"),
            "tokenizer": shared_tokenizer or "tokenizer",
        }
        if shared_tokenizer is None:
            save_model(temporary / "tokenizer", module.tokenizer, dtype=dtype)
    elif isinstance(module, Encoder):
        state = module.state_dict()
        config = {"kind": "encoder", "model": module.config.model_dump(mode="json")}
    else:
        state = module.state_dict()
        config = {"kind": "tokenizer", "tokenizer": module.config.model_dump(mode="json")}
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).cpu().contiguous() for k, v in state.items()}
    save_file(tensors, temporary / "model.safetensors")
    (temporary / "config.json").write_text(json.dumps({"format": FORMAT, **config}, indent=1))
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _tokenizer_of(folder: Path, config: dict[str, Any]) -> str:
    name: str = config["tokenizer"]
    return name if name in bundled() else str(folder / name)


def _tokenizer(config: dict[str, Any], source: str) -> Tokenizer:
    kind = config.get("kind")
    if kind not in TOKENIZERS:
        raise ValueError(f"{source}: unknown tokenizer kind {kind!r}; {nearest(str(kind), TOKENIZERS)}.")
    config_class, tokenizer_class = TOKENIZERS[kind]
    build: Any = tokenizer_class
    tokenizer: Tokenizer = build(validate(config_class, config, source))
    return tokenizer


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
