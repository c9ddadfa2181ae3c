"""Sampling by the conventions of diffusers pipelines, for any genaim generator.

Importing this module imports diffusers, which takes seconds; `import samplers` alone does not.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from genaim.core.hardware import pick_dtype
from genaim.core.order import Step
from genaim.data.transforms import tensor_to_pil
from genaim.models import GenerativeModel
from genaim.models.base import GuidanceSchedule
from genaim.pretrained import load_generator, push_to_hub, save_pretrained
from samplers.generate import generate_batches
from samplers.labels import class_numbers
from samplers.prepare import prepare

StepEndCallback = Callable[["GenAIMPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]
ClassLabels = Sequence[int | str] | Tensor | np.ndarray | int | str | None
NUM_IMAGES = 16  # as the command line


class GenAIMPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A generator as a pipeline: ``GenAIMPipeline.from_pretrained("emoji-var")(class_labels=[0, 3], seed=1).images``.

    Image i of a seed is the picture that ``genaim sample --seed`` writes at the same options: to the last bit after
    `prepare`, which the command line always does, and up to rounding before.
    """

    model: GenerativeModel

    def __init__(self, model: GenerativeModel, torch_dtype: torch.dtype | None = None) -> None:
        """Takes a generator, and the number format of its matrix products; None takes what the hardware does best."""
        super().__init__()
        self.register_modules(model=model)
        self.torch_dtype = torch_dtype

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, torch_dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> "GenAIMPipeline":
        """A pipeline by any name or folder that `genaim.pretrained.find` takes.

        Raises:
            ValueError: If there is no such generator.
        """
        return cls(load_generator(str(name), device=device), torch_dtype)

    def to(
        self,
        *places: torch.device | torch.dtype | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "GenAIMPipeline":
        """Moves the weights to a device, and sets the number format of matrix products; weights stay as they are.

        Raises:
            ValueError: If the model would have to move after `prepare`.
        """
        for place in (*places, *(place for place in (device, dtype) if place is not None)):
            if isinstance(place, torch.dtype):
                self.torch_dtype = place
            elif torch.empty(0, device=place).device != self.model.device:  # a prepared model refuses any move
                self.model.to(place)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The number format of matrix products."""
        return self.torch_dtype or pick_dtype("auto", self.model.device)

    def prepare(self, *, compiled: bool = False) -> "GenAIMPipeline":
        """Makes the model ready to sample fast, as the command line does; it can then not be saved any more.

        Args:
            compiled: Whether to use `torch.compile`, for many images of one batch size; a warning tells where it fails.

        Raises:
            ValueError: If the model is prepared for another number format.
        """
        reason = prepare(self.model, self.dtype, compiled=compiled)
        if reason is not None:
            warnings.warn(f"nothing is compiled, since this fails here: {reason}", stacklevel=2)
        return self

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Writes a genaim model folder, which `from_pretrained` and the command line take.

        Raises:
            ValueError: If the folder holds something else than a model, or weights are wanted in another format.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization is False; genaim writes safetensors alone, leave it out.")
        save_pretrained(self.model, folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the model; see `genaim.pretrained.push_to_hub`."""
        return push_to_hub(self.model, repo_id, **options)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels = None,
        *,
        guidance_scale: float | None = None,
        guidance_schedule: GuidanceSchedule | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        diffusion_steps: int | None = None,
        scheduler: str | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        batch_size: int = 16,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEndCallback | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generates one image per label.

        Args:
            class_labels: Class of each image by number or name, or a tensor or array of numbers, (B,); None takes the
                classes in turn for 16 images.
            guidance_scale: 1.0 is off; None takes the model's default.
            guidance_schedule: Name in `samplers.guidance.SCHEDULES`; None takes the model's default.
            num_inference_steps: Number of steps, for orders that can choose it.
            temperature: Below 1 prefers likely tokens; None takes the model's default.
            top_k: Draw among the k likeliest codes; None takes the model's default, 0 is off.
            top_p: Draw among the likeliest codes of this total; None takes the model's default, 1 is off.
            diffusion_steps: Steps of a diffusion head for each token; None takes the model's default.
            scheduler: Name of a diffusion head's sampler, see `SamplingOptions`; None takes the model's default, and
                ``own`` the head's. The head diffuses, not the pipeline: it has no scheduler among its components.
            generator: Where the seed is drawn from, if ``seed`` is None; None draws it from PyTorch's generator.
            seed: Seed of all images.
            batch_size: Images computed together.
            output_type: ``pil``; ``pt`` for (B, 3, H, W) in [0, 1]; ``np`` for (B, H, W, 3) in [0, 1].
            return_dict: Whether to return an output object, or a tuple.
            callback_on_step_end: Called after every step of every batch as ``callback(pipeline, index, step,
                {"tokens": canvas})``, where ``index`` counts on over the batches; it may raise, but not replace tokens.

        Returns:
            An object with ``images``, or a tuple of them.

        Raises:
            ValueError: If an option does not fit the model, or both a generator and a seed are given.
        """
        if output_type not in ("pil", "pt", "np"):
            raise ValueError(f"output_type is '{output_type}'; use pil, pt or np.")
        labels = self._labels(class_labels)
        options = self.model.config.sampling.options(
            temperature=temperature, top_k=top_k, top_p=top_p, diffusion_steps=diffusion_steps, scheduler=scheduler
        )
        seed = _seed(generator, seed)
        done = 0
        with self.progress_bar(total=1) as bar:

            def on_step(step: Step, tokens: Tensor) -> None:
                nonlocal done
                bar.total = step.total * -(-len(labels) // batch_size)  # only the first step tells
                bar.update()
                if callback_on_step_end is not None:
                    returned = callback_on_step_end(self, done, step.number, {"tokens": tokens})
                    if returned and returned.get("tokens") is not tokens:
                        raise ValueError("callback_on_step_end returned other tokens, which a model cannot take back.")
                done += 1

            batches = generate_batches(
                self.model,
                labels,
                seed=seed,
                batch_size=batch_size,
                options=options,
                guidance_scale=guidance_scale,
                guidance_schedule=guidance_schedule,
                num_steps=num_inference_steps,
                dtype=self.dtype,
                on_step=on_step,
            )
            images = _finished(torch.cat(list(batches)), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, given: ClassLabels) -> Tensor:
        """Class numbers, (B,) int64."""
        config = self.model.config
        if not config.num_classes:
            if given is not None:
                raise ValueError("the model has no classes; leave class_labels out.")
            return torch.zeros(NUM_IMAGES, dtype=torch.int64)
        if given is None:
            return torch.arange(NUM_IMAGES) % config.num_classes
        labels = [given] if isinstance(given, int | str) else given
        if isinstance(given, Tensor | np.ndarray):
            labels = _listed(given)
        return torch.tensor([n for label in labels for n in class_numbers([_plain(label)], config)], dtype=torch.int64)


def _plain(label: object) -> str:
    return str(label.item() if isinstance(label, Tensor | np.generic) else label)


def _listed(labels: Tensor | np.ndarray) -> list[int]:
    """The numbers of a tensor or array of them.

    Raises:
        ValueError: If it has not one dimension, or other values than integers.
    """
    array = np.asarray(labels.tolist() if isinstance(labels, Tensor) else labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"class_labels is {array.dtype} of shape {array.shape}; give integers of shape (B,), or a list of numbers "
            "and names."
        )
    found: list[int] = array.tolist()
    return found


def _seed(generator: torch.Generator | None, seed: int | None) -> int:
    if seed is None:
        return int(torch.randint(2**62, (1,), generator=generator, device=generator.device if generator else None))
    if generator is not None:
        raise ValueError(f"both a generator and seed={seed} are given; leave one out.")
    return seed


def _finished(images: Tensor, output_type: str) -> Any:
    """Images (B, 3, H, W) in [-1, 1] in the wanted form."""
    if output_type == "pil":
        return tensor_to_pil(images)
    images = (images.float() + 1) / 2
    return images if output_type == "pt" else np.asarray(images.permute(0, 2, 3, 1).cpu())
