"""What a training run is made of: the keys of a recipe."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from genaim.config import Config, nearest, validate
from genaim.data import DataConfig
from genaim.models import EncoderConfig, ModelConfig
from genaim.tokenizers import MultiScaleVQConfig, TokenizerChoice, TrainableConfig
from genaim.training.tokenizer_loss import TokenizerLossConfig


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's moments."""
    weight_decay: float = Field(0.05, ge=0)
    """Decay of matrices and kernels; vectors (biases, norms, scales) and embeddings of one row are not decayed."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    final_lr_share: float = Field(0.01, ge=0, le=1)
    """Last learning rate of the cosine over the peak."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest gradient norm; null does not clip."""


class RunConfig(Config):
    """What all runs share."""

    name: str
    """Name of the run; its folder is `folder`/`name`."""
    folder: str = "runs"
    """Folder of run folders."""
    seed: int = Field(0, ge=0)
    """Seed of weights, data order and noise."""
    data: DataConfig
    """Training and validation images."""
    data_fingerprint: str | None = None
    """Fingerprint of the files, filled in by the run, which continues with the same data in another place."""
    init: str | None = None
    """A model to start from: bundled or official name, model folder or run folder; its classes may be others."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Images of a step, over all processes and accumulated micro-batches."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches of a step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimiser and schedule."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights that are validated, sampled and exported; early steps average less."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto takes bfloat16 where the hardware computes it fast."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    compile: bool = False
    """Use torch.compile for the transformer's blocks: minutes of warm-up, for long runs on a GPU."""
    log_every: int = Field(20, gt=0)
    """Steps between log lines."""
    validate_every: int = Field(500, gt=0)
    """Steps between validations and image grids."""
    save_every: int = Field(500, gt=0)
    """Steps between checkpoints."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of accelerate by name: tensorboard, wandb, mlflow, ..."""

    @field_validator("name")
    @classmethod
    def _stays_in_the_folder(cls, name: str) -> str:
        if not name.strip(".") or set(name) & {"/", "\\"}:
            raise ValueError("the run's folder is folder/name; give a name without slashes, and choose folder=")
        return name

    @model_validator(mode="after")
    def _micro_batches_are_whole(self) -> "RunConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} must divide batch_size {self.batch_size}")
        return self


class TokenizerRunConfig(RunConfig):
    """A run that trains a tokenizer."""

    kind: Literal["tokenizer"] = "tokenizer"
    """tokenizer, generator or encoder."""
    tokenizer: TrainableConfig
    """The tokenizer."""
    loss: TokenizerLossConfig = TokenizerLossConfig()
    """Its training objective."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> "TokenizerRunConfig":
        if self.tokenizer.image_size != self.data.image_size:
            c = self.tokenizer
            why = ""
            if isinstance(c, MultiScaleVQConfig):
                why = f" (patch_nums ends at {c.patch_nums[-1]}, times downsampling {c.autoencoder.downsampling})"
            raise ValueError(
                f"the tokenizer makes images of {c.image_size} pixels{why}, but data.image_size is "
                f"{self.data.image_size}; make them equal"
            )
        if self.loss.adversarial > 0 and self.data.image_size < 32:
            raise ValueError(
                f"loss.adversarial needs images of 32 pixels or more, not {self.data.image_size}; set it to 0"
            )
        return self


class GeneratorRunConfig(RunConfig):
    """A run that trains a generator over a trained tokenizer."""

    kind: Literal["generator"] = "generator"
    """tokenizer, generator or encoder."""
    tokenizer: TokenizerChoice
    """A bundled tokenizer, a model folder or a run folder; or the config of one that needs no training."""
    tokenizer_weights: str | None = None
    """Fingerprint of its weights, filled in by the run, which does not continue with another tokenizer."""
    latent_scale: float | None = None
    """Scale of continuous latents, measured by the run when its tokenizer has none."""
    model: ModelConfig
    """The generator; its classes are taken from the data when not given."""
    views: int = Field(1, gt=0)
    """Augmentation passes of every image in the token cache."""
    cache_folder: str = "cache"
    """Where token caches are kept."""


class EncoderRunConfig(RunConfig):
    """A run that pre-trains an encoder on images."""

    kind: Literal["encoder"] = "encoder"
    """tokenizer, generator or encoder."""
    model: EncoderConfig
    """The encoder."""

    @model_validator(mode="after")
    def _fits(self) -> "EncoderRunConfig":
        if self.model.image_size != self.data.image_size:
            raise ValueError(
                f"model.image_size is {self.model.image_size}, but data.image_size is {self.data.image_size}; make "
                "them equal"
            )
        if self.model.head_depth is None:
            raise ValueError("model.head_depth is null, but pre-training needs a pixel head; give it a depth")
        return self


AnyRunConfig = TokenizerRunConfig | GeneratorRunConfig | EncoderRunConfig
RUNS: dict[str, type[AnyRunConfig]] = {
    "tokenizer": TokenizerRunConfig,
    "generator": GeneratorRunConfig,
    "encoder": EncoderRunConfig,
}
"""The recipe of every kind of run."""


def parse_run(data: dict[str, Any], source: str) -> AnyRunConfig:
    """Validates a recipe.

    Raises:
        ValueError: One line that names the wrong key.
    """
    kind = data.get("kind")
    if kind not in RUNS:
        raise ValueError(f"{source}: key 'kind' is {kind!r}; {nearest(str(kind), RUNS)}.")
    run: AnyRunConfig = validate(RUNS[kind], data, source)
    return run
