"""What `genaim evaluate probe` is asked for."""

from dataclasses import dataclass

from genaim.evaluation.probe_protocols import Protocol, choose_protocols
from genaim.models.encoder import Layers


@dataclass(frozen=True)
class ProbeRequest:
    """What is asked for."""

    models: tuple[str, ...]
    """Names of models, model folders or run folders, of images of one size."""
    probes: tuple[str, ...] = ("knn", "linear", "attentive")
    """Protocols by name."""
    layers: tuple[Layers, ...] | None = None
    """Layers of the frozen features, as `features` takes them; None takes all."""
    data: str | None = None
    """What `apps.splits.data_for` takes; None takes the recipe of the first model."""
    train_count: int | None = None
    """Training images, evenly over the split; None takes all."""
    test_count: int | None = None
    """Images to judge on, evenly over the split; None takes all."""
    baselines: bool = True
    """Whether pixels and untrained models are probed too."""
    epochs: int | None = None
    """Of the trained probes; None takes the published number, as in the next two."""
    step_images: int | None = None
    """Images of a step."""
    lrs: tuple[float, ...] | None = None
    """Peak learning rates to choose from."""
    seed: int = 0
    """Seed of probes and untrained models."""
    batch_size: int = 64
    """Images whose features are computed together."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "float32"
    """Autocast type of the features."""


def check(request: ProbeRequest) -> None:
    """Raises ValueError for what no model can honour."""
    if request.batch_size < 1:
        raise ValueError(f"--batch-size is {request.batch_size}; it must be 1 or more.")
    protocols_of(request)


def protocols_of(request: ProbeRequest) -> dict[str, Protocol]:
    """What is asked for, by name.

    Raises:
        ValueError: If there is no such probe, or a number does not fit.
    """
    chosen = choose_protocols(request.probes, epochs=request.epochs, batch_size=request.step_images, lrs=request.lrs)
    if "finetune" in chosen and len(request.lrs or ()) > 1:
        raise ValueError("finetune takes one learning rate; give --lr one, or probe without it.")
    return chosen


def parse_numbers(text: str | None) -> tuple[float, ...] | None:
    """Positive numbers with commas between them.

    Raises:
        ValueError: If they are something else.
    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise ValueError(f"--lr is '{text}'; give positive numbers with commas, such as 1e-3,1e-2.")
    return found


def parse_layers(text: str | None) -> tuple[Layers, ...] | None:
    """``0,-1,norm`` as `features` takes them; the models refuse what is not there."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return tuple(int(name) if name.removeprefix("-").isdecimal() else name for name in names)
