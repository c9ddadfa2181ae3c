"""Any autoencoder of images that diffusers has: AutoencoderKL, AutoencoderTiny, AutoencoderDC and others.

The class and its settings stand in our config, so that a model folder needs no network. diffusers is imported when such
a tokenizer is built. `genaim.pretrained.diffusers_autoencoder` reads weights from the Hub or a folder.
"""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genaim.config import Config, nearest, one_line
from genaim.tokenizers.latents import LatentTokenizer, Posterior


class DiffusersAutoencoderConfig(Config):
    """An autoencoder of diffusers: in recipes by its source, in model folders by its class and settings."""

    kind: Literal["diffusers"] = "diffusers"
    """Name in the registry of tokenizers."""
    image_size: int = Field(256, ge=1)
    """Side of the images."""
    patch_size: int = Field(1, ge=1)
    """Latent cells of a token's side."""
    latent_scale: float | None = Field(None, gt=0)
    """Factor that brings latents to unit size; null takes the published scaling_factor, or measures it in training."""
    source: str | None = None
    """Hub name owner/name, or local folder with a config.json of diffusers, that class, settings and weights are in."""
    subfolder: str | None = None
    """Folder inside the source, such as vae of a whole pipeline."""
    class_name: str | None = None
    """Class in diffusers, when there is no source."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its arguments."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> "DiffusersAutoencoderConfig":
        if (self.source is None) == (self.class_name is None):
            raise ValueError("an autoencoder of diffusers needs a source (Hub name or folder), or else a class_name")
        return self


class DiffusersAutoencoder(LatentTokenizer):
    """Images to the latent of a diffusers autoencoder, and back.

    A published centre (`shift_factor`, or `latents_mean` and `latents_std` per channel) is part of what we call latent:
    it is brought to 0 before the latent scale.
    """

    def __init__(self, config: DiffusersAutoencoderConfig) -> None:
        """Builds the network with fresh weights.

        Raises:
            ValueError: If the class or its settings cannot be used, or the config names a source, which is read by
                `genaim.pretrained.load_tokenizer`.
        """
        if config.class_name is None:
            raise ValueError(f"autoencoder '{config.source}' is not read yet; use genaim.pretrained.load_tokenizer.")
        autoencoder = autoencoder_class(config.class_name)
        try:
            example = example_latent(autoencoder, config)
            network = autoencoder.from_config(config.settings)
        except Exception as error:  # each class fails in its own way on settings and images that it does not take
            reason = one_line(error)
            raise ValueError(
                f"{config.class_name} of diffusers cannot code images of {config.image_size} pixels with its settings "
                f"({reason}); take a class for images, and a multiple of its downsampling as image_size."
            ) from None
        channels, height = example.mean.shape[1:3]
        published = network.config
        scale = config.latent_scale or published.get("scaling_factor")
        super().__init__(config.image_size, config.image_size // height, channels, config.patch_size, scale)
        self.config, self.deterministic = config, example.std is None
        self.network = network
        shift = published.get("shift_factor") or 0.0
        self.centre = tuple(published.get("latents_mean") or [shift] * channels)
        self.spread = tuple(published.get("latents_std") or [1.0] * channels)

    def posterior(self, images: Tensor) -> Posterior:
        """Mean and standard deviation of the latent, centred as published; deviation 0 of deterministic classes."""
        mean, std = latent_of(self.network, images)
        centre, spread = self._channels(self.centre, mean), self._channels(self.spread, mean)
        std = torch.zeros_like(mean) if std is None else std / spread
        return Posterior(((mean - centre) / spread).float(), std.float())

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Images of an unscaled latent, not clamped."""
        latent = latent * self._channels(self.spread, latent) + self._channels(self.centre, latent)
        images: Tensor = self.network.decode(latent).sample
        return images

    @staticmethod
    def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


class Latent(NamedTuple):
    """What an autoencoder of diffusers gives."""

    mean: Tensor
    """(B, C, h, w)."""
    std: Tensor | None
    """(B, C, h, w); None where the class has no posterior."""


def latent_of(network: Any, images: Tensor) -> Latent:
    """The latent of images (B, 3, H, W) in [-1, 1], whatever the class calls it."""
    out = network.encode(images)
    if hasattr(out, "latent_dist"):
        return Latent(out.latent_dist.mean, out.latent_dist.std)
    return Latent(out.latent if hasattr(out, "latent") else out.latents, None)


def example_latent(autoencoder: Any, config: DiffusersAutoencoderConfig) -> Latent:
    """The latent of one image, of which only the shape is computed.

    Raises:
        ValueError: If it does not decode to the size of the image.
    """
    with torch.device("meta"):
        network = autoencoder.from_config(config.settings)
        images = torch.zeros(1, 3, config.image_size, config.image_size)
        latent = latent_of(network, images)
        decoded = network.decode(latent.mean).sample
    if decoded.shape != images.shape:
        raise ValueError(f"images of {tuple(images.shape[1:])} become {tuple(decoded.shape[1:])}")
    return latent


def autoencoder_class(name: str) -> Any:
    """A class of diffusers by name.

    Raises:
        ValueError: If it is no autoencoder.
    """
    import diffusers

    known = [known for known in dir(diffusers) if "Autoencoder" in known]
    if name not in known:
        raise ValueError(f"diffusers has no autoencoder '{name}'; {nearest(name, known)}.")
    return getattr(diffusers, name)
