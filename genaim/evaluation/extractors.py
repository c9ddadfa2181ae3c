"""Feature extractors for Frechet distances and friends, in torch-fidelity's registry.

An extractor is a class of torch-fidelity's protocol: 8-bit images (B, 3, H, W) in, a tuple of features out.
Inception-v3 is torch-fidelity's own. `CifarExtractor` is an example of a user's: ``genaim evaluate fid --extractor
MODULE:CLASS`` takes any other. Importing this module needs torch-fidelity.
"""

import hashlib
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

try:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
    from torch_fidelity.utils import create_feature_extractor
except ImportError:
    raise ImportError("these figures need torch-fidelity; run pip install 'genaim[eval]'.") from None

from genaim.config import nearest
from genaim.evaluation.cifar import load_cifar_resnet
from genaim.evaluation.quality import Layers
from genaim.models import Encoder

INCEPTION = "inception-v3-compat"
CIFAR, ENCODER = "cifar-resnet56", "encoder"


class _GenaimExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """What ours have in common: they take part in every figure and are not compiled."""

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)


class CifarExtractor(_GenaimExtractor):
    """64 features and 10 logits of a CIFAR-10 ResNet-56; images of any size, resized to 32x32."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError(
                f"extractor '{name}' has no weights to download; give those of a CIFAR-10 ResNet-56 by --weights FILE."
            )
        self.model = load_cifar_resnet(Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.model.features(levels_to_images(images))
        found = {"features": features, "logits": self.model.linear(features)}
        return tuple(found[name] for name in self.features_list)


class EncoderExtractor(_GenaimExtractor):
    """Pooled features of a genaim encoder, which is given as ``encoder``; images of the size that it is trained on."""

    def __init__(self, name: str, features_list: list[str], encoder: Encoder | None = None, **kwargs: Any) -> None:
        super().__init__(name, features_list)
        if encoder is None:
            raise ValueError(f"extractor '{name}' needs an encoder; give its folder by --weights.")
        self.encoder = encoder

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        side = self.encoder.image_size
        if images.shape[-2:] != (side, side):
            raise ValueError(
                f"the encoder takes images of {side}x{side} pixels, not {images.shape[-1]}x{images.shape[-2]}; take "
                "another extractor."
            )
        return (self.encoder.features(levels_to_images(images), pool="mean"),)


for _name, _class in {CIFAR: CifarExtractor, ENCODER: EncoderExtractor}.items():
    if _name not in FEATURE_EXTRACTORS_REGISTRY:  # another module may have been imported under another name
        register_feature_extractor(_name, _class)


class Extractor(NamedTuple):
    """A feature extractor, ready to use."""

    module: FeatureExtractorBase
    layers: Layers

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of 8-bit images (B, 3, H, W), (B, F) float32 on the CPU, by the name of their layer."""
        with torch.no_grad():
            found = self.module.convert_features_tuple_to_dict(self.module(images))
        return {name: features.float().cpu().clone().contiguous() for name, features in found.items()}


def make_extractor(name: str, device: torch.device, **arguments: Any) -> Extractor:
    """An extractor with the layers of its figures.

    Args:
        name: In torch-fidelity's registry, or ``module:class``, which is imported and registered.
        device: Where it computes.
        arguments: What its class takes, such as ``feature_extractor_weights_path``.

    Raises:
        ValueError: If there is none of this name.
    """
    if ":" in name:
        _register(name)
    elif name not in FEATURE_EXTRACTORS_REGISTRY:
        raise ValueError(f"there is no extractor '{name}'; {nearest(name, list(FEATURE_EXTRACTORS_REGISTRY))}.")
    kind = FEATURE_EXTRACTORS_REGISTRY[name]
    provided = kind.get_provided_features_list()
    wanted = {metric: kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")}
    has_logits = wanted["isc"] in provided and wanted["isc"] != wanted["fid"]  # embeddings give no Inception score
    layers = Layers(wanted["fid"], wanted["isc"] if has_logits else None)
    names = [layer for layer in (layers.features, layers.logits) if layer is not None]
    module = create_feature_extractor(name, names, cuda=False, verbose=False, **arguments)
    return Extractor(module.to(device), layers)


def source_digest(module: nn.Module) -> str:
    """Hash of the source files that define a module, its parts and their base classes; 16 hex digits.

    torch's own files are left out, for which its version stands, and so is what a file imports but for such classes.
    """
    defined_in = {kind.__module__ for part in module.modules() for kind in type(part).__mro__}
    names = sorted(name for name in defined_in if name.partition(".")[0] not in ("builtins", "torch"))
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files if file)).hexdigest()[:16]


def check_pickle(path: Path) -> None:
    """Makes sure that torch-fidelity, which unpickles weight files whole, meets tensors only.

    Raises:
        ValueError: If the file holds anything else, or cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises any type on a broken file
        raise ValueError(
            f"'{path}' is no file of plain weights ({' '.join(str(error).split())[:120]}); give another."
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"'{path}' holds no table of weights; give another file.")


def levels_to_images(levels: Tensor) -> Tensor:
    """8-bit images to float32 in [-1, 1]."""
    return levels.float() / 127.5 - 1


def _register(name: str) -> None:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"extractor '{name}' cannot be imported ({error}); give MODULE:CLASS of this folder or of an installed one."
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, FeatureExtractorBase)):
        raise ValueError(f"'{name}' is no sub-class of torch_fidelity's FeatureExtractorBase; derive it from that.")
    FEATURE_EXTRACTORS_REGISTRY[name] = kind
