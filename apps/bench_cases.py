"""What `genaim bench` measures: published models, and the ways of computing them."""

from dataclasses import dataclass

import torch

from genaim.core.hardware import pick_dtype

PLAIN = "plain float32"


@dataclass(frozen=True)
class Sampling:
    """A published generator, and how it is sampled with guidance."""

    kind: str
    """var or mar."""
    preset: str
    """Its size."""
    batches: tuple[int, ...] = (1,)
    """Numbers of images at once."""
    rounds: int | None = None
    """Steps of generation; None takes the order's own."""
    diffusion: tuple[tuple[int | None, str | None], ...] = ((None, None),)
    """Steps of the diffusion head and their scheduler; each is measured, the first also in the plain way."""
    plain_rounds: int | None = None
    """The plain run is extrapolated from so many rounds; None computes all, and measures float32 too."""
    side: int = 256
    """Pixels of the image's side."""
    growth: bool = False
    """Measures the fastest way alone, once."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        size = "" if self.side == 256 else f", {self.side} px"
        rounds = f", {self.rounds} rounds" if self.growth and self.rounds else ""
        return f"{self.kind.upper()}-{self.preset}{size}{rounds}"


@dataclass(frozen=True)
class Coding:
    """Encoding and decoding one image by VAR's tokenizer."""

    preset: str
    """Size of the generator; tiny ones have a small tokenizer."""
    side: int = 256
    """Pixels of the image's side."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"tokenizer, {self.side} px"


@dataclass(frozen=True)
class Training:
    """A training step of VAR with AdamW, from tokens."""

    preset: str
    """Its size."""
    batch: int
    """Images of a step."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"VAR-{self.preset}, training step"


Case = Sampling | Coding | Training
PRESETS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Sampling("var", "d16", batches=(1, 4)),
        Coding("d16"),
        Sampling("mar", "base", rounds=64, diffusion=((100, None), (10, "dpmsolver++")), plain_rounds=8),
        Training("d16", batch=2),
    ),
    "gpu": (
        Sampling("var", "d16", batches=(1, 64)),
        Coding("d16"),
        Sampling("var", "d30"),
        Sampling("mar", "large", batches=(1, 64), rounds=64, diffusion=((100, None),), plain_rounds=8),
        Training("d16", batch=64),
    ),
    "growth": (
        *(Sampling("var", depth, growth=True) for depth in ("d12", "d20")),
        Sampling("var", "d16", batches=(1, 2, 4, 8), growth=True),
        *(Sampling("var", "d16", side=side, growth=True) for side in (512, 1024)),
        *(
            Sampling("mar", "base", rounds=rounds, diffusion=((10, "dpmsolver++"),), growth=True)
            for rounds in (8, 16, 32, 64)
        ),
    ),
    "tiny": (
        Sampling("var", "tiny", batches=(1, 2)),
        Coding("tiny"),
        Sampling("mar", "tiny", rounds=4, diffusion=((4, None), (3, "dpmsolver++")), plain_rounds=2),
        Training("tiny", batch=2),
    ),
}
"""What is measured; tiny is smaller and shows the table in seconds."""


@dataclass(frozen=True)
class Way:
    """How a case is computed."""

    dtype: torch.dtype
    """Number format of matrix products."""
    plain: bool = False
    """As the baseline, see `PLAIN`."""
    compiled: bool = False
    """With torch.compile."""

    @property
    def how(self) -> str:
        """What the table calls it."""
        return PLAIN if self.plain else short(self.dtype) + ", compiled" * self.compiled


def ways(case: Case, device: torch.device, compiled: bool) -> list[Way]:
    """Plain; then in float32, and in the format that the hardware prefers; then compiled in that."""
    dtypes = list(dict.fromkeys((torch.float32, pick_dtype("auto", device))))
    growth = isinstance(case, Sampling) and case.growth
    long = isinstance(case, Sampling) and case.plain_rounds is not None
    found = [Way(dtype) for dtype in (dtypes[-1:] if growth or long else dtypes)]
    if compiled and not isinstance(case, Coding):
        found.append(Way(dtypes[-1], compiled=True))
    return found if growth else [Way(torch.float32, plain=True), *found]


def short(dtype: torch.dtype) -> str:
    """The name of a number format."""
    return str(dtype).removeprefix("torch.")
