"""Autoencoders of diffusers with their weights, from the Hub or a local folder in the layout of diffusers."""

import json
import re
from pathlib import Path
from typing import Any

from genaim.config import one_line, validate
from genaim.tokenizers import DiffusersAutoencoder, DiffusersAutoencoderConfig
from genaim.tokenizers.diffusers_autoencoder import autoencoder_class

FILES = ("config.json", "diffusion_pytorch_model*.safetensors*")


def load_diffusers(config: DiffusersAutoencoderConfig) -> DiffusersAutoencoder:
    """The tokenizer that a config with a source names; its own config holds class and settings instead.

    Weights are read from safetensors only. Files from the Hub are downloaded once.

    Raises:
        ValueError: If the source cannot be had, or is no autoencoder with all its weights.
    """
    assert config.source is not None
    folder = _local(config.source, config.subfolder)
    network = _read(folder)
    settings = {key: value for key, value in network.config.items() if not key.startswith("_")}
    found = {"class_name": type(network).__name__, "settings": json.loads(json.dumps(settings))}
    kept = config.model_dump(exclude={"source", "subfolder", "class_name", "settings"})
    tokenizer = DiffusersAutoencoder(validate(DiffusersAutoencoderConfig, kept | found, str(folder)))
    tokenizer.network.load_state_dict(network.state_dict())
    return tokenizer.eval()


def _local(source: str, subfolder: str | None) -> Path:
    """The folder of a source, downloaded if it is on the Hub."""
    inside = subfolder or ""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser() / inside
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise ValueError(f"autoencoder '{source}' is no folder; give one, or a Hub name owner/name.")
    from huggingface_hub import snapshot_download

    patterns = [f"{inside}/{name}" if inside else name for name in FILES]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, ignore_patterns=["*.fp16.*"])) / inside
    except Exception as error:  # of the library's HTTP client, which has changed from version to version
        reason = one_line(error)
        raise ValueError(
            f"autoencoder '{source}' cannot be had from the Hub ({reason}); download its config.json and safetensors "
            "weights elsewhere, and give their folder as source."
        ) from None


def _read(folder: Path) -> Any:
    """The network of a folder in the layout of diffusers."""
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"'{folder}' holds no config.json of diffusers; give the autoencoder's own folder (subfolder: vae in "
            "a pipeline)."
        ) from None
    autoencoder = autoencoder_class(str(name))
    try:
        network, report = autoencoder.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # of diffusers, safetensors or the class itself
        reason = one_line(error)
        raise ValueError(f"the {name} in '{folder}' cannot be read ({reason}).") from None
    wrong = [f"missing {key}" for key in report["missing_keys"]] + [f"unknown {k}" for k in report["unexpected_keys"]]
    if wrong:
        raise ValueError(f"the weights in '{folder}' do not fit {name}: {'; '.join(sorted(wrong)[:4])}.")
    return network
