"""The official checkpoints: what their authors publish, where, and under which licence.

What weights tell by their shapes is read from them (`genaim.pretrained.convert`); a row holds the rest. Checksums are
those that are published: a file on the Hub has the one that the Hub knows, the AIM files carry eight digits besides,
and the MAR files have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

HUB = "https://huggingface.co"
CLASS_NAMES = Path(__file__).parent / "imagenet_classes.txt"


@dataclass(frozen=True)
class RemoteFile:
    """A published file."""

    name: str
    """Its name."""
    repo: str | None = None
    """Repository on the Hub; None where it is elsewhere."""
    revision: str = "main"
    """Commit or branch of the repository."""
    address: str = ""
    """Where it is, if not on the Hub."""
    sha256: str = ""
    """First hex digits of its SHA-256, or all; empty where the authors state none."""

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"{HUB}/{self.repo}/resolve/{self.revision}/{self.name}" if self.repo else self.address


@dataclass(frozen=True)
class Licence:
    """The licence of the weights, as far as the authors state one."""

    name: str
    """Its short name."""
    url: str
    """Where it can be read."""


@dataclass(frozen=True)
class Official:
    """A published model."""

    family: str
    """Name in `genaim.pretrained.convert.FAMILIES`."""
    files: tuple[RemoteFile, ...]
    """Its weights; several are parts of one model."""
    licence: Licence
    """Licence of the weights."""
    parameters: str
    """Size class."""
    image_size: int | None
    """Side of the images in pixels; None is any."""
    preset: str | None = None
    """The size that the files must hold."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that the weights do not tell."""

    @property
    def kind(self) -> str:
        """generator, tokenizer or encoder."""
        return KINDS[self.family]


KINDS = {
    "var": "generator",
    "mar": "generator",
    "var-vqvae": "tokenizer",
    "mar-kl16": "tokenizer",
    "aim": "encoder",
    "aimv2": "encoder",
}
"""What the models of each family are."""

VAR = Licence("MIT", "https://github.com/FoundationVision/VAR/blob/main/LICENSE")
MAR = Licence("MIT", "https://github.com/LTH14/mar/blob/main/LICENSE")
AIM = Licence("apple-amlr, for research only", "https://github.com/apple/ml-aim/blob/main/LICENSE")
DROPBOX = "https://www.dropbox.com/scl/fi"


def _var(depth: int, parameters: str, image_size: int) -> Official:
    files = (RemoteFile(f"var_d{depth}.pth", "FoundationVision/var"),)
    return Official("var", files, VAR, parameters, image_size, f"d{depth}")


def _mar(preset: str, address: str, parameters: str, guidance_scale: float) -> Official:
    files = (RemoteFile("checkpoint-last.pth", address=f"{DROPBOX}/{address}&dl=1"),)
    sampling = {"guidance_scale": guidance_scale, "temperature": 1.0}  # as published, at 256 steps
    return Official("mar", files, MAR, parameters, 256, preset, {"sampling": sampling})


def _aim(preset: str, stem: str, part: str, first: int, parameters: str, backbone: str, head: str) -> Official:
    files = (
        RemoteFile(f"{stem}_attnprobe_backbone.pth", "apple/AIM", sha256=backbone),
        RemoteFile(f"{stem}_attnprobe_head_{part}_layers.pth", "apple/AIM", sha256=head),
    )
    layers = tuple(range(first, first + 6))  # whose outputs the head reads, averaged; its file does not tell
    return Official("aim", files, AIM, parameters, 224, preset, {"feature_layers": layers})


def _aimv2(name: str, revision: str) -> Official:
    size, resolution = name.split("-")[0], name.split("-")[2]
    files = (RemoteFile("model.safetensors", f"apple/aimv2-{name}", revision),)
    parameters = {"large": "309M", "huge": "681M", "1B": "1.2B", "3B": "2.7B"}[size]
    side = None if resolution == "native" else int(resolution)
    return Official("aimv2", files, AIM, parameters, side, f"v2-{size}")


OFFICIAL: dict[str, Official] = {
    "var-vqvae": Official(
        "var-vqvae", (RemoteFile("vae_ch160v4096z32.pth", "FoundationVision/var"),), VAR, "109M", None
    ),
    "var-d16": _var(16, "310M", 256),
    "var-d20": _var(20, "600M", 256),
    "var-d24": _var(24, "1.0B", 256),
    "var-d30": _var(30, "2.0B", 256),
    "var-d36": _var(36, "2.3B", 512),
    "mar-kl16": Official(
        "mar-kl16",
        (
            RemoteFile(
                "kl16.ckpt",
                address=f"{DROPBOX}/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1",
            ),
        ),
        MAR,
        "66M",
        256,
    ),
    "mar-base": _mar("base", "f6dpuyjb7fudzxcyhvrhk/checkpoint-last.pth?rlkey=a6i4bo71vhfo4anp33n9ukujb", "208M", 2.9),
    "mar-large": _mar(
        "large", "pxacc5b2mrt3ifw4cah6k/checkpoint-last.pth?rlkey=m48ovo6g7ivcbosrbdaz0ehqt", "479M", 3.0
    ),
    "mar-huge": _mar("huge", "1qmfx6fpy3k7j9vcjjs3s/checkpoint-last.pth?rlkey=4lae281yzxb406atp32vzc83o", "943M", 3.2),
    # With the head of the last six layers, and with that of the six which the authors found best
    "aim-600m": _aim("0.6B", "aim_600m_2bimgs", "last", 18, "687M", "0d6f6b8f", "5ce5a341"),
    "aim-600m-best": _aim("0.6B", "aim_600m_2bimgs", "best", 14, "687M", "0d6f6b8f", "ebd45c05"),
    "aim-1b": _aim("1B", "aim_1b_5bimgs", "last", 18, "1.2B", "d254ecd3", "db3be2ad"),
    "aim-1b-best": _aim("1B", "aim_1b_5bimgs", "best", 12, "1.2B", "d254ecd3", "f1ed7852"),
    "aim-3b": _aim("3B", "aim_3b_5bimgs", "last", 18, "2.7B", "8475ce4e", "5c057b30"),
    "aim-3b-best": _aim("3B", "aim_3b_5bimgs", "best", 12, "2.7B", "8475ce4e", "ad380e16"),
    "aim-7b": _aim("7B", "aim_7b_5bimgs", "last", 26, "6.5B", "184ed94c", "1e5c99ba"),
    "aim-7b-best": _aim("7B", "aim_7b_5bimgs", "best", 14, "6.5B", "184ed94c", "73ecd732"),
    **{
        f"aimv2-{name}": _aimv2(name, revision)
        for name, revision in {
            "large-patch14-224": "ac764a25c832c7dc5e11871daa588e98e3cdbfb7",
            "huge-patch14-224": "9e0bab0e0abb7b20796d2d0b37f39b7c3b1c1af1",
            "1B-patch14-224": "4d24a422f71e87d327d476bc405030fe6593d8b1",
            "3B-patch14-224": "df1cbc288096c9742ec8bd6709ff82757972338c",
            "large-patch14-336": "639423ae9f07319d24a7fc431b61908110d08d3a",
            "huge-patch14-336": "21528bd53a2438a84162e79f1f9a46453b88004c",
            "1B-patch14-336": "5a15f23f6757776fdd487283353a018677621939",
            "3B-patch14-336": "d1adb39ee92dfd7ecf3114b1ee3aa7e9027ce98f",
            "large-patch14-448": "cefb13f21003bdadba65bfbee956c82b976cd23d",
            "huge-patch14-448": "44e6440a24a8ea966ad0deadf5399a22d852bcc0",
            "1B-patch14-448": "7f292735d3a07a911559c0fabb3ad3e9d141713f",
            "3B-patch14-448": "70810b618e4456b724bacc8ef4d2d038060ceda6",
            "large-patch14-224-distilled": "d6d09b071e8ba31735c5e05ccd4b2a393020ce90",
            "large-patch14-336-distilled": "8fe1704e5cc1c80cefc99c194afcefe21dff1faa",
            "large-patch14-native": "cfe7bdbbc924a5f65272d5e2c27fe5f61771a629",
            "large-patch14-224-lit": "c2cd59a786c4c06f39d199c50d08cc2eab9f8605",
        }.items()
    },
}


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1,000 ImageNet classes in order, as torchvision (BSD licence) shortens them.

    torchvision's "Cardigan" and "cardigan" are told apart: the dog is "Cardigan Welsh corgi" here.
    """
    return tuple(CLASS_NAMES.read_text().splitlines())
