"""Models loaded: generators, tokenizers, encoders and probes, from the folders that `genaim.pretrained.names` finds."""

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
from genaim.pretrained.names import bundled, check_kind, locate, read_config
from genaim.pretrained.official import OFFICIAL
from genaim.pretrained.ready import ready_tokenizer
from genaim.tokenizers import TOKENIZERS, ReadyConfig, Tokenizer

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def find(name: str, *kinds: str, progress: Progress | None = None) -> Path:
    """The folder of a model, downloaded (and an official one converted) the first time.

    Args:
        name: As `locate` takes it.
        kinds: As `locate` takes them.
        progress: Where downloads tell their course; None prints lines on standard error.

    Raises:
        ValueError: If there is no such model, it is of another kind, or it cannot be downloaded.
    """
    folder = locate(name, *kinds)
    if folder is None and name in OFFICIAL:
        return fetch(name, progress)
    if folder is None:
        folder = hub_folder(name)
        check_kind(name, read_config(folder)["kind"], kinds)
    return folder


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
    folder = find(name, "tokenizer", "generator", progress=progress)
    config = read_config(folder)
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
    folder = find(name, "generator", progress=progress)
    config = read_config(folder)
    model = build_generator(config["model"], load_tokenizer(str(folder), progress=progress), str(folder))
    return _build(model, _weights(folder, config), folder).to(device)


def load_encoder(name: str, *, device: torch.device | str = "cpu", progress: Progress | None = None) -> Encoder:
    """An encoder by a name or folder that `find` takes.

    Raises:
        ValueError: If it cannot be found or read, or is no encoder.
    """
    folder = find(name, "encoder", progress=progress)
    config = read_config(folder)
    encoder: Encoder = _make(ENCODERS, "encoder", {"kind": "aim"} | config["model"], str(folder))
    return _build(encoder, _weights(folder, config), folder).to(device)


def load_probe(name: str, *, device: torch.device | str = "cpu", progress: Progress | None = None) -> AttentiveProbe:
    """The probe of an encoder, by a name or folder that `find` takes; its classes are those of the official heads.

    Raises:
        ValueError: If it cannot be found or read, or the encoder has none.
    """
    folder = find(name, "encoder", "probe", progress=progress)
    config = read_config(folder)
    if config["kind"] == "encoder" and (folder / "probe").is_dir():
        folder = folder / "probe"
        config = read_config(folder)
    if config["kind"] != "probe":
        raise ValueError(f"'{name}' is an encoder without a probe; official AIM v1 encoders have one.")
    probe = AttentiveProbe(validate(AttentiveProbeConfig, config["model"], str(folder)))
    return _build(probe, _weights(folder, config), folder).to(device)


def from_pretrained(
    name: str | Path, *, device: torch.device | str = "cpu", progress: Progress | None = None
) -> GenerativeModel | Encoder | Tokenizer:
    """A generator, encoder or tokenizer, whichever it is, by a name or folder that `find` takes.

    Raises:
        ValueError: If it cannot be found or read, or is a probe.
    """
    folder = str(find(str(name), progress=progress))
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
