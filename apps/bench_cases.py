"""What `genaim bench` measures: published models with random weights, which cost what trained ones do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from apps.bench_machine import Peak, fastest, peak_memory, release_memory, timed
from apps.bench_plain import plain
from genaim.core.hardware import autocast, compile_parts, pick_dtype
from genaim.core.noise import NoiseSource, gumbel
from genaim.core.transformer import Block
from genaim.data import Batch
from genaim.evaluation.compute import sampling_flops, training_flops
from genaim.heads import SamplingOptions
from genaim.models import MAR, VAR, GenerativeModel, MARConfig, VARConfig
from genaim.tokenizers import KLAutoencoder, KLAutoencoderConfig, MultiScaleVQ, MultiScaleVQConfig
from genaim.training.config import OptimizerConfig
from genaim.training.optimizer import make_optimizer
from genaim.training.tasks import GeneratorLoss
from samplers.generate import generate
from samplers.prepare import prepare, ready_convolutions

GUIDANCE = 2.5
PLAIN = "plain float32"
LONG, SHORT = 20.0, 5.0  # seconds: what takes longer is measured once, of growth what takes longer than the other


@dataclass(frozen=True)
class Row:
    """A measurement."""

    what: str
    """Model and task."""
    how: str
    """Number format and way; `PLAIN` is the baseline of its task."""
    batch: int = 1
    """Images at once."""
    seconds: float = 0.0
    """Of the whole batch."""
    flops: float = 0.0
    """Operations of the batch as the model defines them; 0 where they are not counted."""
    dtype: str = "float32"
    """Format of its matrix products, whose ceiling it is held against."""
    memory: int = 0
    """Most bytes in use."""
    speedup: float | None = None
    """How many times as many images a second as the plain run."""
    note: str = ""
    """What must be known of it."""


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
    """Measures the fast way alone, once."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        size = "" if self.side == 256 else f", {self.side} px"
        rounds = f", {self.rounds} rounds" if self.growth and self.rounds else ""
        return f"{self.kind.upper()}-{self.preset}{size}{rounds}"


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


Case = Sampling | Training
PRESETS: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Sampling("var", "d16", batches=(1, 4)),
        Sampling("mar", "base", rounds=64, diffusion=((100, None), (10, "dpmsolver++")), plain_rounds=8),
        Training("d16", batch=2),
    ),
    "gpu": (
        Sampling("var", "d16", batches=(1, 64)),
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
        Sampling("mar", "tiny", rounds=4, diffusion=((4, None), (3, "dpmsolver++")), plain_rounds=2),
        Training("tiny", batch=2),
    ),
}
"""What is measured; tiny is smaller and shows the table in seconds."""
SCALES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32, 48, 64),
}
"""Sides of VAR's token maps by pixels: published ones, and two more."""


def measure(case: Case, device: torch.device, compiled: bool, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows of a case, as they are measured; ``say`` is told of what comes next."""
    if isinstance(case, Training):
        yield from measure_training(case, device, compiled, say)
    else:
        yield from measure_sampling(case, device, compiled, say)


# Sampling


def measure_sampling(case: Sampling, device: torch.device, compiled: bool, say: Callable[[str], None]) -> Iterator[Row]:
    """Plain; then prepared in float32, and in the format that the hardware prefers; then compiled in that."""
    model, dtypes = build(case.kind, case.preset, device, case.side), both_dtypes(device)
    flops = [
        sum(sampling_flops(model, guided=True, num_steps=case.rounds, diffusion_steps=steps).values())
        for steps, _ in case.diffusion
    ]
    base, tokens = None, None
    if not case.growth:
        say(f"{case.name}: {PLAIN}")
        base, tokens = plain_row(model, case)
        yield replace(base, flops=flops[0])
        if isinstance(model, VAR):
            yield noise_row(model, case, device)
            yield from tokenizer_rows(model.tokenizer, dtypes, say)
    quick = case.plain_rounds is None and not case.growth
    ways = [(dtype, False) for dtype in dtypes if dtype == dtypes[-1] or quick]
    for dtype, compile_it in ways + ([(dtypes[-1], True)] if compiled else []):
        del model
        model = build(case.kind, case.preset, device, case.side)
        reason = prepare(model, dtype, compiled=compile_it)
        if reason is not None:
            say(f"{case.name}: cannot be compiled here: {reason}")
            continue
        for (steps, scheduler), operations in zip(case.diffusion, flops, strict=True):
            for batch in case.batches:
                how = short(dtype) + ", compiled" * compile_it + (f", {steps} diffusion steps" if steps else "")
                say(f"{case.name}: {how}, {batch} at once")
                row = Row(case.name, how, batch, flops=batch * operations, dtype=short(dtype))
                row, drawn = sample_row(model, row, case, steps, scheduler, dtype)
                if isinstance(model, VAR) and batch == 1 and tokens is not None:
                    row = replace(row, note=f"{int((drawn == tokens).sum())} of {tokens.numel()} tokens as plain")
                yield replace(row, speedup=None if base is None else batch * base.seconds / row.seconds)


def plain_row(model: GenerativeModel, case: Sampling) -> tuple[Row, Tensor]:
    """One image in the plain way, and its tokens."""
    steps, scheduler = case.diffusion[0]
    every = 1 if case.plain_rounds is None or case.rounds is None else case.rounds // case.plain_rounds
    row = Row(case.name, PLAIN + (f", {steps} diffusion steps" if steps else ""), speedup=1.0)
    with plain(model, every):
        row, tokens = sample_row(model, row, case, steps, scheduler, torch.float32)
    if every > 1:
        with torch.no_grad():
            decoder = fastest(lambda: model.tokenizer.decode(tokens), model.device, 1)
        seconds = (row.seconds - decoder) * every + decoder
        row = replace(row, seconds=seconds, note=f"from {case.plain_rounds} of {case.rounds} rounds")
    return row, tokens


def sample_row(
    model: GenerativeModel, row: Row, case: Sampling, steps: int | None, scheduler: str | None, dtype: torch.dtype
) -> tuple[Row, Tensor]:
    """A row with its time and memory, and the tokens, (B, N) or (B, N, C); the second of two runs if they are short."""
    canvas: list[Tensor] = []
    options = SamplingOptions(diffusion_steps=steps, scheduler=scheduler)

    def work() -> Tensor:
        return generate(
            model,
            torch.arange(row.batch),
            options=options,
            guidance_scale=GUIDANCE,
            num_steps=case.rounds,
            dtype=dtype,
            on_step=lambda step, tokens: canvas.append(tokens),
        )

    seconds, peak = watched(work, model.device)
    if seconds < (SHORT if case.growth else LONG) or "compiled" in row.how:
        seconds, peak = watched(work, model.device)
    return replace(row, seconds=seconds, memory=peak.bytes), canvas[-1]


def noise_row(model: VAR, case: Sampling, device: torch.device) -> Row:
    """The random numbers of one image."""

    def work() -> list[Tensor]:
        noise = NoiseSource(0, torch.zeros(1, dtype=torch.int64, device=device))
        return [gumbel(noise.uniform(size, model.tokenizer.codebook_size)) for size in model.order.sizes]

    return Row(case.name, "noise of an image", seconds=fastest(work, device, 3), note="part of every row")


def tokenizer_rows(tokenizer: MultiScaleVQ, dtypes: list[torch.dtype], say: Callable[[str], None]) -> Iterator[Row]:
    """Encoding and decoding one image, plain and then prepared, which the tokenizer remains."""
    name = f"tokenizer, {tokenizer.image_size} px"
    say(name)
    images = torch.zeros(1, 3, tokenizer.image_size, tokenizer.image_size, device=tokenizer.codebook.weight.device)
    with torch.no_grad():
        tokens = tokenizer.encode(images)
        tasks: dict[str, Callable[[], Tensor]] = {
            "encode": lambda: tokenizer.encode(images),
            "decode": lambda: tokenizer.decode(tokens),
        }
        base = {task: fastest(work, images.device, 1) for task, work in tasks.items()}
        ready_convolutions(tokenizer)
        for task, work in tasks.items():
            yield Row(f"{name}, {task}", PLAIN, seconds=base[task], speedup=1.0)
            for dtype in dtypes:
                with autocast(images.device, dtype):
                    seconds = fastest(work, images.device, 1)
                speedup = base[task] / seconds
                yield Row(f"{name}, {task}", short(dtype), seconds=seconds, dtype=short(dtype), speedup=speedup)


# Training


def measure_training(case: Training, device: torch.device, compiled: bool, say: Callable[[str], None]) -> Iterator[Row]:
    """Steps in float32 with PyTorch's default AdamW, then as a run computes them, then compiled."""
    base, dtypes = 0.0, both_dtypes(device)
    ways = [(PLAIN, torch.float32), *((short(dtype), dtype) for dtype in dtypes)]
    for how, dtype in ways + ([(f"{short(dtypes[-1])}, compiled", dtypes[-1])] if compiled else []):
        say(f"{case.name}: {how}")
        model = build("var", case.preset, device)
        row = Row(case.name, how, case.batch, flops=case.batch * training_flops(model), dtype=short(dtype))
        if how.endswith("compiled") and (reason := compile_parts(model, (Block,), device)):
            say(f"{case.name}: cannot be compiled here: {reason}")
            continue
        seconds, peak = watched(training_steps(model, case.batch, dtype, fused=how != PLAIN), device)
        base = base or seconds
        yield replace(row, seconds=seconds / 2, memory=peak.bytes, speedup=base / seconds)


def training_steps(model: GenerativeModel, batch: int, dtype: torch.dtype, *, fused: bool = True) -> Callable[[], None]:
    """Two training steps as work to time, after one that is done at once."""
    module = GeneratorLoss(model).train()
    optimizer = make_optimizer(module, OptimizerConfig())
    for group in optimizer.param_groups:
        group["fused"] = fused or None  # None lets PyTorch choose
    rows = torch.arange(batch, device=model.device)
    tokens = torch.zeros(batch, model.order.num_tokens, dtype=torch.int64, device=model.device)
    images = Batch(None, rows, rows, rows, tokens=tokens)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(model.device, dtype):
            loss = module(images, NoiseSource(0, rows), 0)
        (loss.sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    def steps() -> None:
        step()
        step()

    step()
    return steps


# Parts


def build(kind: str, preset: str, device: torch.device, side: int = 256) -> GenerativeModel:
    """A model over the published tokenizer of a side in pixels, tiny ones a small one; no weight is zero."""
    torch.manual_seed(0)
    model: GenerativeModel
    shape = {"autoencoder": {"channels": 32, "channel_multipliers": [1, 1, 2]}} if preset == "tiny" else {}
    size: dict[str, Any] = {"preset": preset, "num_classes": 1000}
    if kind == "var":
        tokenizer = MultiScaleVQ(MultiScaleVQConfig.model_validate({"patch_nums": SCALES[side], **shape}))
        model = VAR(VARConfig.model_validate(size), tokenizer)
    else:
        continuous = {"latent_scale": 0.2325, **({"image_size": 64} if shape else {}), **shape}
        model = MAR(MARConfig.model_validate(size), KLAutoencoder(KLAutoencoderConfig.model_validate(continuous)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    release_memory()  # of the model before it
    return model.to(device).eval()


def watched(work: Callable[[], object], device: torch.device) -> tuple[float, Peak]:
    """Seconds and memory of work."""
    with peak_memory(device) as peak:
        seconds, _ = timed(work, device)
    return seconds, peak


def both_dtypes(device: torch.device) -> list[torch.dtype]:
    """float32, and what `auto` chooses if that is another."""
    return list(dict.fromkeys((torch.float32, pick_dtype("auto", device))))


def short(dtype: torch.dtype) -> str:
    """The name of a number format."""
    return str(dtype).removeprefix("torch.")
