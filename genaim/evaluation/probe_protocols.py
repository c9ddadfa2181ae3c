"""Protocols of papers that tell what a model has learned from the classes that can be read off its features.

    knn         weighted votes of the 20 nearest training images (Wu et al. 2018, https://arxiv.org/abs/1805.01978), as
                in DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294; its eval_knn.py)
    linear      logistic regression, solved to its optimum by L-BFGS, the penalty chosen on a part of the training
                images (CLIP, Radford et al. 2021, https://arxiv.org/abs/2103.00020, appendix A.3)
    linear-mae  a linear layer behind a batch norm, by LARS (MAE, He et al. 2021, https://arxiv.org/abs/2111.06377,
                table 10; github.com/facebookresearch/mae, main_linprobe.py)
    attentive   attention with a learned query over all patches (AIM, El-Nouby et al. 2024,
                https://arxiv.org/abs/2401.08541, section 4; the probe is `genaim.models.AttentiveProbe`); the schedule
                is AIMv2's (Fini et al. 2024, https://arxiv.org/abs/2411.14402, table A2, for ImageNet)
    finetune    the whole model with a linear layer on its pooled features (MAE, table 9), in `fine_tuning`

AIM gives its own numbers for the probe in an appendix of which no copy was at hand, and its code only evaluates. AIMv2
probes alike and prints them: AdamW of betas 0.9 and 0.999, seven learning rates, a cosine down to 1e-5, clipping at 3,
100 epochs of batches of 1,024 with 5 of warm-up (other data: of 512, without). Ours differs in three things. The cosine
ends at a hundredth of the peak, which is 1e-5 at 1e-3 alone. Weight decay is 0.1, where AIMv2 tries 0.05 too. And the
learning rate is chosen on a tenth of the training images, where AIMv2 reports the best figure.

Features are extracted once, so the trained probes of them have no augmentation. The papers crop and flip; AIMv2 adds
colour jitter and AutoAugment. Fine-tuning has the augmentation of the recipe's data, and not MAE's RandAugment, mixup,
cutmix and drop path. The schedules of MAE and AIM were made for ImageNet, where an epoch has a hundred to a thousand
steps: small data need smaller batches, more epochs, or higher learning rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from genaim.config import nearest
from genaim.evaluation.probe_training import Training


@dataclass(frozen=True)
class KNN:
    """Weighted votes of the nearest training images."""

    k: int = 20
    """How many vote."""
    temperature: float = 0.07
    """A vote weighs exp(cosine similarity / temperature)."""


@dataclass(frozen=True)
class Logistic:
    """Logistic regression on standardised features."""

    penalties: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    """Penalties on half the squared weights to choose from, beside the mean cross-entropy; from strong to weak."""
    max_iterations: int = 1000
    """Of L-BFGS."""


Protocol = KNN | Logistic | Training

PROTOCOLS: dict[str, Protocol] = {
    "knn": KNN(),
    "linear": Logistic(),
    "linear-mae": Training(
        module="linear",
        lrs=(0.1,),
        scaled=True,
        epochs=90,
        warmup=10 / 90,
        batch_size=16384,
        optimizer="lars",
        betas=(0.9, 0.0),
    ),
    "attentive": Training(
        module="attentive",
        lrs=(5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3),
        epochs=100,
        warmup=5 / 100,
        batch_size=1024,
        weight_decay=0.1,
        final_lr_share=0.01,
        clip_norm=3.0,
    ),
    "finetune": Training(
        module="whole",
        lrs=(1e-3,),
        scaled=True,
        epochs=100,
        warmup=5 / 100,
        batch_size=1024,
        weight_decay=0.05,
        label_smoothing=0.1,
        layer_decay=0.75,
    ),
}
"""Protocols by name."""


def choose_protocols(
    names: Sequence[str],
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lrs: tuple[float, ...] | None = None,
) -> dict[str, Protocol]:
    """Protocols by name, with other numbers than the published ones in those that are trained.

    Raises:
        ValueError: If there is no such protocol, or a number is for none of them.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown probe '{name}'; {nearest(name, PROTOCOLS)}.")
    given = {"epochs": epochs, "batch_size": batch_size, "lrs": lrs}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    chosen = {name: PROTOCOLS[name] for name in names}
    trained = {name: replace(p, **changes) for name, p in chosen.items() if isinstance(p, Training)}
    if changes and not trained:
        those = ", ".join(name for name, protocol in PROTOCOLS.items() if isinstance(protocol, Training))
        raise ValueError(f"{' and '.join(changes)} are for the probes {those}, of which none is asked for.")
    return chosen | trained


def of_patches(protocol: Protocol) -> bool:
    """Whether a protocol reads the features of all patches."""
    return isinstance(protocol, Training) and protocol.module == "attentive"
