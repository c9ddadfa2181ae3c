"""Classes as people give them."""

from collections.abc import Sequence

from genaim.config import nearest
from genaim.models import GeneratorConfig


def class_numbers(asked: Sequence[str], config: GeneratorConfig) -> list[int]:
    """Numbers of classes given by name (in any case) or number, one or several to a text, with commas.

    Raises:
        ValueError: If there is no such class, or there are none.
    """
    if asked and not config.num_classes:
        raise ValueError(f"the model has no classes; leave out '{asked[0]}'.")
    names = [name.casefold() for name in config.class_names or ()]
    numbers = []
    for text in asked:
        # A name may hold commas itself, as ImageNet's do.
        for part in [text] if text.casefold() in names else text.split(","):
            part = part.strip()
            if part.casefold() in names:
                numbers.append(names.index(part.casefold()))
            elif part.isascii() and part.isdigit() and int(part) < config.num_classes:
                numbers.append(int(part))
            else:
                allowed = f"numbers 0 to {config.num_classes - 1}"
                if config.class_names:
                    allowed = f"{nearest(part, config.class_names)}; or {allowed}"
                raise ValueError(f"unknown class '{part}'; {allowed}.")
    return numbers
