"""The training loop, on accelerate.

One step is a pure function of the state and (seed, step): the loader, the noise and PyTorch's generator (dropout) are
keyed by them, so a resumed run repeats an uninterrupted one bit for bit on CPU. Gradients are summed over micro-batches
and processes and divided by the global count once, so neither number changes the result beyond rounding. (Dropout does
depend on the number of processes: its masks are keyed by the step and the process, not by the sample.)
"""

import json
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn

from genaim.core.hardware import PATIENCE, compile_parts, cpu_capabilities, pick_device, pick_dtype
from genaim.core.noise import NoiseSource, step_seed
from genaim.core.progress import Progress
from genaim.core.transformer import Block
from genaim.data import Batch, ImageDataset, MomentsDataset, StreamDataset, TokenDataset, eval_batches, make_loader
from genaim.data.dataset import BadFiles
from genaim.data.grid import contact_sheet
from genaim.files import file_written_whole
from genaim.models.base import Loss, Totals, add_up
from genaim.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    load_state,
    optimizer_tensors,
    placed_like,
    save_checkpoint,
    whole,
)
from genaim.training.config import RunConfig
from genaim.training.ema import EMA
from genaim.training.optimizer import learning_rate, make_optimizer
from genaim.training.run_folder import truncate_metrics
from genaim.training.tasks import Task

Dataset = ImageDataset | MomentsDataset | TokenDataset | StreamDataset


class Interrupted(Exception):
    """The run was asked to stop, and has saved."""


class _NotDrawn(BaseException):  # no library on the way takes it for an error of its own
    """There is a request to stop, and drawing may take minutes."""


def make_accelerator(config: RunConfig, folder: Path) -> Accelerator:
    """The accelerator of a run: its device, number format and trackers.

    Raises:
        ValueError: If the device is not there, or an earlier run of this Python process had another device or number
            format: accelerate keeps them.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        log_with=list(config.trackers) or None,
        project_dir=folder,
    )
    if accelerator.device.type != device.type:
        raise ValueError(
            f"an earlier run of this process was on {accelerator.device.type}; start a new one for {device.type}."
        )
    return accelerator


def end_processes() -> None:
    """Leaves the group of processes, if there are several; what a program does last, since no run can follow."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Trainer:
    """Trains a task to its last step, saving and validating on the way."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        task: Task,
        sets: Sequence[Dataset | None],
        progress: Progress,
        accelerator: Accelerator,
    ) -> None:
        """Places the task on the device and takes up the newest checkpoint of the run folder, if there is one."""
        self.config, self.folder, self.task = config, folder, task
        train_set, self.val_set = sets
        assert train_set is not None
        self.train_set, self.progress = train_set, progress
        self.accelerator = accelerator
        total = None if isinstance(train_set, StreamDataset) else len(train_set)
        self.bad_files = BadFiles(config.data.max_bad_share, total)
        task.to(accelerator.device)
        if config.compile and (reason := compile_parts(task.module, (Block,), accelerator.device)):
            progress.say(f"note: nothing is compiled, since this fails here: {reason}")
        self.module, self.optimizer = accelerator.prepare(task.module, make_optimizer(task.module, config.optimizer))
        self.ema = EMA(task.model, config.ema_decay)
        self.adversary: nn.Module | None = None
        if task.adversary is not None:
            optimizer = torch.optim.AdamW(task.adversary.parameters(), lr=task.adversary_lr, betas=(0.5, 0.9))
            self.adversary, self.adversary_optimizer = accelerator.prepare(task.adversary, optimizer)
            task.adversary.requires_grad_(False)  # the main loss passes through it; only its own step trains it
        self.step = 0
        self._asked = self._stop = False  # a request to this process; the agreement of all
        self._drawing = False
        self._loader_state: dict[str, Any] = {}
        self._seconds = 0.0
        self._resume()

    # The loop

    def train(self) -> None:
        """Runs to the last step.

        Raises:
            Interrupted: After SIGINT or SIGTERM, once the state is saved.
            ValueError: If the loss is not finite, or too many images cannot be read.
        """
        c, main = self.config, self.accelerator.is_main_process
        world = self.accelerator.num_processes
        loader = make_loader(
            self.train_set,
            batch_size=c.batch_size,
            seed=c.seed,
            start_step=self.step,
            rank=self.accelerator.process_index,
            world_size=world,
            num_workers=c.data.num_workers,
            class_balance=c.data.class_balance,
            state=self._loader_state,
        )
        self.progress.start(c.name, self.step, c.steps)
        began, first, before, waited = time.monotonic(), self.step, self._seconds, 0.0
        with self._signals():
            while self.step < c.steps:
                asked = time.monotonic()
                batch = next(loader)
                waited += time.monotonic() - asked
                self.bad_files.add(batch.bad, len(batch))
                totals, figures = self._one_step(batch.to(self.accelerator.device))
                self.step += 1
                self._loader_state = loader.state_dict()
                elapsed = time.monotonic() - began
                self._seconds, rate = before + elapsed, (self.step - first) * c.batch_size / elapsed
                if self.step % c.log_every == 0 or self.step == c.steps:
                    figures |= {n: (s / k.clamp_min(1)).item() for n, (s, k) in totals.items()}
                    figures |= {
                        "images_per_second": rate,
                        "seconds": self._seconds,
                        "data_share_of_seconds": waited / elapsed,
                    }
                    self._log({f"train/{n}": v for n, v in figures.items()})
                if main:
                    self.progress.advance(self.step, {"loss": totals["loss"][0].item(), "images/s": rate})
                if self.step % c.validate_every == 0 or self.step == c.steps:
                    self._validate()
                if self.step % c.save_every == 0 or self.step == c.steps or self._stop:
                    self._save()
                if self._stop:
                    raise Interrupted(f"stopped after step {self.step} of {c.steps}; run the same command to go on.")
        self.progress.stop()
        if self.bad_files.names:
            self.progress.say(self.bad_files.summary())
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _one_step(self, batch: Batch) -> tuple[Totals, dict[str, float]]:
        """One optimiser step; returns totals over all processes and figures to log."""
        c = self.config
        seed = step_seed(c.seed, self.step)
        torch.manual_seed(seed + self.accelerator.process_index)  # dropout, where a model has it
        lr = learning_rate(c.optimizer, self.step, c.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.module.train()
        outputs: list[dict[str, Tensor]] = []

        def loss_of(micro: Batch) -> Loss:
            loss: Loss = self.module(micro, NoiseSource(seed, micro.rows), self.step)
            outputs.append(loss.outputs)
            return loss

        totals, norm = self._descend(self.module, self.optimizer, self._micro_batches(batch), loss_of)
        figures = {"lr": lr, "grad_norm": norm}
        if self.task.adversary_trains(self.step):
            figures |= self._adversary_step(outputs)
        figures |= self.task.after_step(outputs, NoiseSource(seed, torch.tensor([-1], device=batch.labels.device)))
        self.ema.update(self.task.model, self.step)
        return totals, figures

    def _adversary_step(self, outputs: list[dict[str, Tensor]]) -> dict[str, float]:
        assert self.adversary is not None and self.task.adversary is not None
        adversary = self.adversary
        self.task.adversary.requires_grad_(True)

        def loss_of(output: dict[str, Tensor]) -> Loss:
            return self.task.adversary_loss(adversary, output)

        totals, norm = self._descend(adversary, self.adversary_optimizer, outputs, loss_of)
        self.task.adversary.requires_grad_(False)
        return {"adversary_loss": totals["loss"][0].item(), "adversary_grad_norm": norm}

    def _descend(
        self, module: nn.Module, optimizer: Any, micros: list[Any], loss_of: Callable[[Any], Loss]
    ) -> tuple[Totals, float]:
        """Backward passes over micro-batches, global normalisation, clipping and the optimiser's step."""
        optimizer.zero_grad()
        sums: Totals = {}
        for i, micro in enumerate(micros):
            last = i == len(micros) - 1
            with self.accelerator.no_sync(module) if not last else _nothing(), self.accelerator.autocast():
                loss = loss_of(micro)
                self.accelerator.backward(loss.sum)
            add_up(sums, {"loss": (loss.sum.detach(), loss.count), **loss.parts})
        totals = self._reduce(sums)
        count = totals["loss"][1]
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.accelerator.num_processes / count)  # processes were averaged
        limit = self.config.optimizer.clip_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(module.parameters(), limit))
        mean = (totals["loss"][0] / count).item()
        if not (math.isfinite(mean) and math.isfinite(norm)):
            remedy = "lower optimizer.lr or use dtype=float32."
            if checkpoints(self.folder):  # a run keeps its learning rate
                remedy = (
                    "go on from the last checkpoint with dtype=float32, or lower optimizer.lr in a run from its "
                    f"weights: choose another name= and init={self.folder}."
                )
            raise ValueError(
                f"step {self.step + 1}: the loss is {mean} and its gradient norm {norm}; stopped without saving: "
                f"{remedy}"
            )
        optimizer.step()
        totals["loss"] = (totals["loss"][0] / count, torch.ones_like(count))
        return totals, norm

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        count = self.config.accumulate
        if len(batch) % count:
            raise ValueError(f"accumulate {count} must divide the {len(batch)} images of a process's step.")
        size = len(batch) // count
        return [_rows(batch, slice(i * size, (i + 1) * size)) for i in range(count)]

    def _reduce(self, sums: Totals) -> Totals:
        """Adds up over processes; also agrees on a request to stop."""
        if self.accelerator.num_processes == 1:
            self._stop = self._asked
            return sums
        stop = torch.tensor(float(self._asked), device=self.accelerator.device)
        names = list(sums)
        flat = torch.cat([torch.cat([sums[n][0].flatten(), sums[n][1].flatten()]) for n in names] + [stop[None]])
        flat = self.accelerator.reduce(flat, reduction="sum")
        self._stop = self._stop or bool(flat[-1] > 0)
        out, at = {}, 0
        for n in names:
            total, count = sums[n]
            out[n] = (flat[at : at + total.numel()].view_as(total), flat[at + total.numel()].view_as(count))
            at += total.numel() + 1
        return out

    # Validation

    @torch.no_grad()
    def _validate(self) -> None:
        """Validation figures and an image grid of the averaged weights."""
        c, acc = self.config, self.accelerator
        self.module.eval()
        first: Batch | None = None
        with self.ema.applied(self.task.model):
            sums: Totals = {}
            if self.val_set is not None:
                size = c.batch_size // acc.num_processes
                batches = eval_batches(self.val_set, size, rank=acc.process_index, world_size=acc.num_processes)
                for batch in batches:
                    if len(batch) == 0:  # every image of it was unreadable
                        continue
                    batch = batch.to(acc.device)
                    first = first or batch
                    with acc.autocast():
                        found = self.task.validate(batch, NoiseSource(c.seed, batch.index))
                    add_up(sums, found)
                sums = self._gathered(sums)
                figures, warnings = self.task.summarize(sums) if sums else ({}, ["no validation image could be read"])
                self._log({f"val/{n}": v for n, v in figures.items()})
                if acc.is_main_process:
                    shown = {n: v for n, v in figures.items() if "scale" not in n}
                    self.progress.say(
                        f"validation at step {self.step}: " + "  ".join(f"{n} {v:.4g}" for n, v in shown.items())
                    )
                    for warning in warnings:
                        self.progress.say(f"WARNING: {warning}")
            if acc.is_main_process and acc.distributed_type != DistributedType.FSDP:  # one process has no whole model
                with suppress(_NotDrawn):
                    self._draw(first)

    def _draw(self, batch: Batch | None) -> None:
        """Writes the image grid of this step.

        Raises:
            _NotDrawn: If there is a request to stop, or the first one comes.
        """
        self._drawing = True
        try:
            if self._asked:
                raise _NotDrawn
            with self.accelerator.autocast():
                images = self.task.pictures(batch)
            if images is not None:
                path = self.folder / "pictures" / f"step-{self.step:08d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                with file_written_whole(path) as temporary:
                    contact_sheet(images.float()).save(temporary)
        finally:
            self._drawing = False

    def _gathered(self, sums: Totals) -> Totals:
        """Totals over all processes, of which some may have had no batch and so know no names."""
        if self.accelerator.num_processes == 1:
            return sums
        totals: Totals = {}
        for part in gather_object([{n: (s.cpu(), k.cpu()) for n, (s, k) in sums.items()}]):
            add_up(totals, part)
        return totals

    # State

    def _save(self) -> None:
        tensors = {
            "weights": self.task.weights(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer_tensors(self.task.module, self.optimizer),
        }
        if self.adversary is not None and self.task.adversary is not None:
            tensors["adversary"] = self.task.adversary.state_dict()
            tensors["adversary_optimizer"] = optimizer_tensors(self.task.adversary, self.adversary_optimizer)
        tensors = {stem: {name: whole(value) for name, value in named.items()} for stem, named in tensors.items()}
        readers = [self._loader_state]
        if self.accelerator.num_processes > 1:
            readers = gather_object(readers)
        if self.accelerator.is_main_process:
            loader = {name: state for reader in readers for name, state in reader.items()}
            machine = machine_of(self.accelerator)
            state = {"loader": loader, "seconds": self._seconds, "machine": machine}
            save_checkpoint(self.folder, self.step, tensors, state)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = checkpoints(self.folder)
        if self.accelerator.is_main_process:
            truncate_metrics(self.folder / "metrics.jsonl", load_state(found[-1])["step"] if found else 0)
        if not found:
            return
        tensors, state = load_checkpoint(found[-1])
        wanted = self.task.model.state_dict()
        weights = {name: weight for name, weight in tensors["weights"].items() if name in wanted}
        changed = [name for name in wanted if name not in weights and not name.startswith("tokenizer.")]
        changed += [name for name, weight in weights.items() if weight.shape != wanted[name].shape]
        if changed:
            raise ValueError(
                f"{found[-1]} is of another model: {changed[:5]} are missing or of another shape; choose another name=."
            )
        placed = {name: placed_like(weight, wanted[name]) for name, weight in weights.items()}
        self.task.model.load_state_dict(placed, strict=False)
        self.ema.load_state_dict(tensors["ema"])
        load_optimizer_tensors(self.task.module, self.optimizer, tensors["optimizer"])
        if self.adversary is not None and self.task.adversary is not None:
            self.task.adversary.load_state_dict(tensors["adversary"])
            load_optimizer_tensors(self.task.adversary, self.adversary_optimizer, tensors["adversary_optimizer"])
        self.step, self._loader_state, self._seconds = state["step"], state["loader"], state["seconds"]
        if self.accelerator.is_main_process:
            self.progress.say(f"continuing {self.folder} after step {self.step} of {self.config.steps}")

    def _log(self, figures: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.step, **{name: float(f"{value:.6g}") for name, value in figures.items()}}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        self.accelerator.log(figures, step=self.step)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the next step, as all processes agree; a second one ends it at once."""

        def handle(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
            self.progress.say("stopping after the next step; press Ctrl-C again to stop without saving")
            if self._drawing:
                raise _NotDrawn

        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def machine_of(accelerator: Accelerator) -> dict[str, str | int]:
    """What a run computes on, for the record."""
    device = accelerator.device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else cpu_capabilities().get("cpu_name", platform.processor())
    )
    return {
        "device": device.type,
        "name": name,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "autocast": accelerator.mixed_precision,
        "torch": torch.__version__,
    }


def _rows(batch: Batch, rows: slice) -> Batch:
    names = ("images", "labels", "index", "rows", "tokens", "low_res")
    cut: dict[str, Any] = {name: None if getattr(batch, name) is None else getattr(batch, name)[rows] for name in names}
    return replace(batch, bad=[], **cut)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
