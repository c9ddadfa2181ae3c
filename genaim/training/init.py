"""Training that starts from the weights of another model."""

from typing import Any

import torch
from torch import Tensor, nn

from genaim.config import Config
from genaim.core.conditioning import ClassEmbedding
from genaim.core.progress import Progress
from genaim.models import Encoder, GenerativeModel
from genaim.tokenizers import Tokenizer, same_weights

PIXEL_HEAD = "pixel_head."


def start_from(model: nn.Module, source: GenerativeModel | Encoder | Tokenizer, name: str, progress: Progress) -> None:
    """Puts the weights of ``source`` into a model of the same make.

    Where only the number of classes differs, the classes start fresh, and the null class is kept; so does the pixel
    head of an encoder where the source has none.

    Args:
        model: The generator (its tokenizer stays as it is), encoder or tokenizer to be trained.
        source: Where the weights come from; for a tokenizer it may be a generator, whose tokenizer is then taken.
        name: How the source is called.
        progress: Where it is told what was kept.

    Raises:
        ValueError: If the two do not fit.
    """
    if isinstance(model, Tokenizer) and isinstance(source, GenerativeModel):
        source = source.tokenizer
    here, there = _what(model), _what(source)
    if here != there:
        raise ValueError(f"init '{name}' is {there}, but the recipe trains {here}; give {here}.")
    state, wanted = _weights(source), _weights(model)
    told = ""
    if isinstance(model, GenerativeModel) and isinstance(source, GenerativeModel):
        told = _fresh_classes(model, state, wanted)
        if not same_weights(source.tokenizer, model.tokenizer):
            progress.say(f"WARNING: init '{name}' was trained with another tokenizer than the recipe's; set tokenizer=")
    elif isinstance(model, Encoder) and not any(key.startswith(PIXEL_HEAD) for key in state):
        state |= {key: weight for key, weight in wanted.items() if key.startswith(PIXEL_HEAD)}
        told = "its pixel head, which starts fresh"
    problems = _mismatches(state, wanted)
    if problems:
        raise ValueError(
            f"init '{name}' does not fit the recipe's model: {'; '.join(problems[:2])}"
            f"{_other_keys(source.config, getattr(model, 'config', None))}."
        )
    model.load_state_dict(state, strict=False)
    progress.say(f"starting from the weights of '{name}'{f', but for {told}' if told else ''}")


def _what(model: nn.Module) -> str:
    kinds = {GenerativeModel: "a generator", Encoder: "an encoder", Tokenizer: "a tokenizer"}
    return next(text for kind, text in kinds.items() if isinstance(model, kind))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, and its buffers."""
    return model.state_dict_without_tokenizer() if isinstance(model, GenerativeModel) else model.state_dict()


def _fresh_classes(model: GenerativeModel, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Replaces class tables of another length by the model's own, with the null class of the source.

    Returns:
        What was done, in words; empty if nothing.
    """
    told = ""
    for path, module in model.named_modules():
        key = f"{path}.table.weight"
        if not isinstance(module, ClassEmbedding) or key not in state:
            continue
        before, now = state[key], wanted[key]
        if before.shape[1:] == now.shape[1:] and len(before) != len(now):
            state[key] = torch.cat([now[:-1], before[-1:].to(now)])
            old, new = len(before) - 1, len(now) - 1
            told = f"its classes: {old} classes give way to {new} fresh ones, and the null class is kept"
    return told


def _mismatches(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Where names or shapes differ."""
    problems = [
        f"{key} is {tuple(state[key].shape)} there and {tuple(wanted[key].shape)} here"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems += [f"{key} is missing there" for key in wanted if key not in state]
    return problems + [f"{key} is missing here" for key in state if key not in wanted]


def _other_keys(there: Any, here: Any) -> str:
    """The config keys that differ, which are where to look; classes and sampling do not matter."""
    if type(there) is not type(here) or not isinstance(here, Config):
        return f"; the one is {type(there).__name__}, the other {type(here).__name__}"
    ignored = {"num_classes", "class_names", "sampling", "label_dropout", "preset"}
    before, now = (c.model_dump(mode="json", exclude=ignored) for c in (there, here))
    keys = [f"{key}={before[key]} there and {now[key]} here" for key in now if before[key] != now[key]]
    return f" ({', '.join(keys)})" if keys else ""
