"""Official checkpoints to models of ours: how each family's files are read, sized and filled in.

To add a family: a file with its key table, and a line in `FAMILIES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from genaim.config import Config, nearest, validate
from genaim.models import ENCODERS, MODELS, AttentiveProbe, AttentiveProbeConfig, Encoder, GenerativeModel
from genaim.pretrained.aim import aim_config, load_official_aim, load_official_probe, probe_config
from genaim.pretrained.keys import read_state
from genaim.pretrained.mar import (
    KL16_SCALE,
    kl16_config,
    load_official_kl16,
    load_official_mar,
    mar_config,
    mar_tokenizer,
)
from genaim.pretrained.official import imagenet_classes
from genaim.pretrained.var import load_official_var, load_official_vqvae, var_config, var_tokenizer, vqvae_config
from genaim.tokenizers import TOKENIZERS, Tokenizer

State = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class TokenizerFamily:
    """How the files of a tokenizer are read."""

    config: Callable[[State], dict[str, Any]]
    """Its config, as far as the weights tell it."""
    load: Callable[[Any, State], None]
    """Fills a tokenizer."""
    published: Mapping[str, Any]
    """Config of the official one."""
    container: tuple[str, ...] = ()
    """Keys that lead to the weights in files that hold more."""


@dataclass(frozen=True)
class GeneratorFamily:
    """How the files of a generator are read."""

    config: Callable[[State], dict[str, Any]]
    """Its config, as far as the weights tell it."""
    load: Callable[[Any, State], None]
    """Fills a generator, but for its tokenizer."""
    tokenizer: str
    """Family and official name of its tokenizer."""
    tokenizer_changes: Callable[[State, Any], dict[str, Any]]
    """Keys of its tokenizer's config that its own weights tell, given the rest of that config."""
    container: tuple[str, ...] = ()
    """Keys that lead to the weights in files that hold more."""


@dataclass(frozen=True)
class EncoderFamily:
    """How the files of an encoder, and of its probe, are read."""

    config: Callable[[State], dict[str, Any]]
    """Its config, as far as the weights tell it."""
    load: Callable[[Any, State], None]
    """Fills an encoder."""
    container: tuple[str, ...] = ()
    """Keys that lead to the weights in files that hold more."""


FAMILIES: dict[str, TokenizerFamily | GeneratorFamily | EncoderFamily] = {
    "var-vqvae": TokenizerFamily(
        vqvae_config, load_official_vqvae, {"kind": "multiscale_vq"}, container=("trainer", "vae_local")
    ),
    "var": GeneratorFamily(
        var_config, load_official_var, "var-vqvae", var_tokenizer, container=("trainer", "var_wo_ddp")
    ),
    "mar-kl16": TokenizerFamily(
        kl16_config, load_official_kl16, {"kind": "kl", "latent_scale": KL16_SCALE}, container=("model",)
    ),
    "mar": GeneratorFamily(mar_config, load_official_mar, "mar-kl16", mar_tokenizer, container=("model_ema",)),
    "aim": EncoderFamily(aim_config, load_official_aim),
    "aimv2": EncoderFamily(aim_config, load_official_aim),
}


@dataclass(frozen=True)
class Converted:
    """A model with official weights."""

    module: GenerativeModel | Encoder | Tokenizer
    """The model."""
    probe: AttentiveProbe | None = None
    """What reads classes off the encoder's features, if the files hold it."""
    shared_tokenizer: str | None = None
    """Official name of its tokenizer, of which it then holds the config only."""
    tokenizer_changes: Mapping[str, Any] = field(default_factory=dict)
    """Config keys in which its tokenizer differs from that."""


def convert(
    family: str,
    files: Sequence[Path],
    *,
    tokenizer: Tokenizer | Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Converted:
    """A model from official files; its size follows from their shapes.

    A generator is built on the meta device and takes the tensors over as they are: no weight is drawn or copied.

    Args:
        family: Name in `FAMILIES`.
        files: The parts of the checkpoint, safetensors or ``torch.save``.
        tokenizer: The generator's tokenizer, or an official file of it; None refers to the official one by name.
        config: Config keys that the weights do not tell.

    Raises:
        ValueError: If a file cannot be read safely, or is not of the family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family '{family}'; {nearest(family, FAMILIES)}.")
    known = FAMILIES[family]
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_state(file, known.container)
    source = ", ".join(map(str, files))
    if isinstance(known, GeneratorFamily):
        return _with_tokenizer(known, state, tokenizer, config or {}, source)
    if tokenizer is not None:
        raise ValueError(f"family '{family}' has no generator, and takes no tokenizer; leave --tokenizer out.")
    if isinstance(known, EncoderFamily):
        return _encoder(known, state, config or {}, source)
    return Converted(_tokenizer(known, state, config or {}, source))


def _with_tokenizer(
    family: GeneratorFamily,
    state: State,
    tokenizer: Tokenizer | Path | None,
    config: Mapping[str, Any],
    source: str,
) -> Converted:
    """A generator over its tokenizer: one that is given, the file of one, or the official one by name."""
    config = {**_told(family.config, state, source), **config}
    inner = FAMILIES[family.tokenizer]
    assert isinstance(inner, TokenizerFamily)

    def changes(base: Config) -> dict[str, Any]:
        return _told(lambda weights: family.tokenizer_changes(weights, base), state, source)

    if tokenizer is None:
        usual = _tokenizer_config(inner.published, source)
        differing = {key: value for key, value in changes(usual).items() if usual.model_dump(mode="json")[key] != value}
        with torch.device("meta"):
            shared = _new_tokenizer(_changed(usual, differing, source))
        return Converted(_generator(family, state, shared, config, source), None, family.tokenizer, differing)
    if isinstance(tokenizer, Path):
        tokenizer = _tokenizer(inner, read_state(tokenizer, inner.container), {}, str(tokenizer))
    own = _new_tokenizer(_changed(tokenizer.config, changes(tokenizer.config), source))
    own.load_state_dict(tokenizer.state_dict())
    return Converted(_generator(family, state, own.eval(), config, source))


def _encoder(family: EncoderFamily, state: State, config: Mapping[str, Any], source: str) -> Converted:
    """An encoder with the weights of a checkpoint, and its probe, which has as many attention heads."""
    told = {**_told(family.config, state, source), **config}
    config_class, encoder_class = ENCODERS[told["kind"]]
    build: Any = encoder_class
    with torch.device("meta"):
        encoder: Encoder = build(validate(config_class, told, source))
    family.load(encoder, state)
    shape = probe_config(state)
    if shape is None:
        return Converted(encoder.eval())
    probe = AttentiveProbe(AttentiveProbeConfig(num_heads=encoder.config.num_heads, **shape))
    load_official_probe(probe, state)
    return Converted(encoder.eval(), probe.eval())


def _tokenizer(family: TokenizerFamily, state: State, config: Mapping[str, Any], source: str) -> Tokenizer:
    """A tokenizer with the weights of a checkpoint."""
    told = {**family.published, **_told(family.config, state, source), **config}
    tokenizer = _new_tokenizer(_tokenizer_config(told, source))
    family.load(tokenizer, state)
    return tokenizer.eval()


def _generator(
    family: GeneratorFamily, state: State, tokenizer: Tokenizer, config: Mapping[str, Any], source: str
) -> GenerativeModel:
    """A generator with the weights of a checkpoint."""
    if config["num_classes"] == len(imagenet_classes()):
        config = {**config, "class_names": imagenet_classes()}
    config_class, model_class = MODELS[config["kind"]]
    build: Any = model_class
    with torch.device("meta"):
        model: GenerativeModel = build(validate(config_class, config, source), tokenizer)
    family.load(model, state)
    return model.eval()


def _tokenizer_config(config: Mapping[str, Any], source: str) -> Config:
    return validate(TOKENIZERS[config["kind"]][0], config, source)


def _changed(config: Config, changes: Mapping[str, Any], source: str) -> Config:
    """A tokenizer's config with some other keys."""
    return _tokenizer_config({**config.model_dump(mode="json"), **changes}, source)


def _new_tokenizer(config: Any) -> Tokenizer:
    build: Any = TOKENIZERS[config.kind][1]
    tokenizer: Tokenizer = build(config)
    return tokenizer


def _told(function: Callable[[State], T], state: State, source: str) -> T:
    """What the weights tell.

    Raises:
        ValueError: If a key that every checkpoint of the family has is missing.
    """
    try:
        return function(state)
    except KeyError as error:
        raise ValueError(f"{source} lacks the key {error} of its family; check that it is the right file.") from None
