"""How `genaim bench` measures: models with random weights, which cost what trained ones do.

Every way of a case is measured in a process of its own: what ran before it has neither cut up memory nor filled it.
"""

import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import Tensor

from apps.bench_cases import PLAIN, Case, Coding, Sampling, Training, Way, short, ways
from apps.bench_machine import Peak, fastest, peak_memory, timed
from apps.bench_plain import plain
from apps.errors import is_out_of_memory
from genaim.core.hardware import autocast, compile_parts
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

Result = TypeVar("Result")
GUIDANCE = 2.5
LONG, SHORT = 20.0, 5.0  # seconds: what takes longer is measured once, of growth what takes longer than the other
SCALES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32, 48, 64),
}
"""Sides of VAR's token maps by pixels: published ones, and two more."""
SMALL = {"autoencoder": {"channels": 32, "channel_multipliers": [1, 1, 2]}}
"""The shape of a tiny tokenizer."""


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


class LeftOut(Exception):
    """A way that cannot be measured here, and why."""


def measure(case: Case, device: torch.device, compiled: bool, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows of a case, as they are measured; ``say`` is told of what comes next, and of what is left out."""
    base: dict[str, Row] = {}
    plain_tokens = None
    for way in ways(case, device, compiled):
        say(f"{case.name}: {way.how}")
        try:
            rows, tokens = in_own_process(measure_way, case, way, device)
        except LeftOut as reason:
            say(f"{case.name}: {way.how} is left out: {reason}")
            continue
        if way.plain:
            base, plain_tokens = {row.what: row for row in rows if row.how.startswith(PLAIN)}, tokens
        elif tokens and plain_tokens:
            equal = sum(map(int.__eq__, tokens, plain_tokens))
            rows[0] = replace(rows[0], note=f"{equal} of {len(tokens)} tokens as plain")
        yield from (compared(row, base.get(row.what)) for row in rows)


def in_own_process(work: Callable[..., Result], *arguments: object) -> Result:
    """The result of a function that a new process computes; an interruption ends both.

    Raises:
        LeftOut: If the process is killed, as it is where memory does not suffice.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode and process.exitcode > 0:
            raise RuntimeError(f"the process of a measurement ended with status {process.exitcode}.") from None
        raise LeftOut("its process was killed, perhaps for want of memory") from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    found: Result = result
    return found


def _answer(sender: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells of it, and ends this one
    try:
        sender.send((work(*arguments), None))
    except LeftOut as error:
        sender.send((None, error))
    except Exception as error:
        told = f"{type(error).__name__} in the process of a measurement: {error}\n{traceback.format_exc()}"
        sender.send((None, LeftOut("memory does not suffice") if is_out_of_memory(error) else RuntimeError(told)))


def compared(row: Row, base: Row | None) -> Row:
    """The row with its speed over the plain one's, if there is one."""
    if base is None:
        return row
    return replace(row, speedup=(row.batch / row.seconds) / (base.batch / base.seconds))


def measure_way(case: Case, way: Way, device: torch.device) -> tuple[list[Row], list[int]]:
    """Rows of a way, and for VAR the tokens of the first of them, if it is of one image.

    Raises:
        LeftOut: If it cannot be compiled here.
    """
    if isinstance(case, Training):
        return [training_row(case, way, device)], []
    if isinstance(case, Coding):
        return coding_rows(case, way, device), []
    return sampling_rows(case, way, device)


# Sampling


def sampling_rows(case: Sampling, way: Way, device: torch.device) -> tuple[list[Row], list[int]]:
    """One row for every number of images and of diffusion steps, the plain way's for the first of them alone."""
    model = build(case.kind, case.preset, device, case.side)
    operations = {  # of one image, counted before weights are packed
        steps: sum(sampling_flops(model, guided=True, num_steps=case.rounds, diffusion_steps=steps).values())
        for steps, _ in case.diffusion
    }
    if not way.plain and (reason := prepare(model, way.dtype, compiled=way.compiled)):
        raise LeftOut(reason)
    rows: list[Row] = []
    tokens: list[int] = []
    for steps, scheduler in case.diffusion[: 1 if way.plain else None]:
        for batch in case.batches[: 1 if way.plain else None]:
            how = way.how + (f", {steps} diffusion steps" if steps else "")
            row = Row(case.name, how, batch, flops=batch * operations[steps], dtype=short(way.dtype))
            if way.plain:
                row, drawn = plain_row(model, row, case)
            else:
                row, drawn = sample_row(model, row, case, steps, scheduler, way.dtype)
            if isinstance(model, VAR) and batch == 1 and not rows:
                tokens = drawn.flatten().tolist()
            rows.append(row)
    if isinstance(model, VAR) and way.plain:
        rows.append(noise_row(model, case, device))
    return rows, tokens


def plain_row(model: GenerativeModel, row: Row, case: Sampling) -> tuple[Row, Tensor]:
    """One image in the plain way, and its tokens."""
    steps, scheduler = case.diffusion[0]
    every = 1 if case.plain_rounds is None or case.rounds is None else case.rounds // case.plain_rounds
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

    return Row("noise of an image", case.name, seconds=fastest(work, device, 3), note="part of every row")


def coding_rows(case: Coding, way: Way, device: torch.device) -> list[Row]:
    """Encoding and decoding."""
    tokenizer = make_tokenizer(case.preset, case.side).to(device).eval()
    if not way.plain:
        ready_convolutions(tokenizer)
    images = torch.zeros(1, 3, tokenizer.image_size, tokenizer.image_size, device=device)
    with torch.no_grad(), autocast(device, way.dtype):
        tokens = tokenizer.encode(images)
        seconds = {
            "encode": fastest(lambda: tokenizer.encode(images), device, 2),
            "decode": fastest(lambda: tokenizer.decode(tokens), device, 2),
        }
    dtype = short(way.dtype)
    return [Row(f"{case.name}, {task}", way.how, seconds=taken, dtype=dtype) for task, taken in seconds.items()]


# Training


def training_row(case: Training, way: Way, device: torch.device) -> Row:
    """A step: plain with PyTorch's default AdamW, else as a run computes it."""
    model = build("var", case.preset, device)
    flops = case.batch * training_flops(model)
    if way.compiled and (reason := compile_parts(model, (Block,), device)):
        raise LeftOut(reason)
    step = training_step(model, case.batch, way.dtype, fused=not way.plain)
    step()
    seconds, peak = watched(step, device)
    return Row(case.name, way.how, case.batch, seconds, flops, short(way.dtype), peak.bytes)


def training_step(model: GenerativeModel, batch: int, dtype: torch.dtype, *, fused: bool) -> Callable[[], None]:
    """A step as work to time; the first one also makes the optimiser's moments."""
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

    return step


# Parts


def build(kind: str, preset: str, device: torch.device, side: int = 256) -> GenerativeModel:
    """A model over the published tokenizer of a side in pixels, tiny ones a small one; no weight is zero."""
    torch.manual_seed(0)
    model: GenerativeModel
    size: dict[str, Any] = {"preset": preset, "num_classes": 1000}
    if kind == "var":
        model = VAR(VARConfig.model_validate(size), make_tokenizer(preset, side))
    else:
        continuous = {"latent_scale": 0.2325, **({"image_size": 64, **SMALL} if preset == "tiny" else {})}
        model = MAR(MARConfig.model_validate(size), KLAutoencoder(KLAutoencoderConfig.model_validate(continuous)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.to(device).eval()


def make_tokenizer(preset: str, side: int) -> MultiScaleVQ:
    """VAR's tokenizer for images of a side in pixels."""
    shape = SMALL if preset == "tiny" else {}
    return MultiScaleVQ(MultiScaleVQConfig.model_validate({"patch_nums": SCALES[side], **shape}))


def watched(work: Callable[[], object], device: torch.device) -> tuple[float, Peak]:
    """Seconds and memory of work."""
    with peak_memory(device) as peak:
        seconds, _ = timed(work, device)
    return seconds, peak
