"""`genaim evaluate replay`: a record's measurement once more, from nothing."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.quality import evaluate_quality
from apps.quality_record import read_record
from apps.quality_request import QualityRequest, request_from_dict
from genaim.data.sources import digest


def replay(
    path: Path, out: Path | None, *, cache: Path, weights: str | None, device: str | None, command: Sequence[str]
) -> None:
    """Measures again what a record tells, and says how the figures agree.

    Nothing of the first measurement is used: features are kept in a folder of their own until the end, so that an
    interrupted replay goes on.

    Args:
        path: The record, or its folder.
        out: Folder to write; None takes ``evaluations/replay-DIGEST``.
        cache: Where features are kept until the end.
        weights: The extractor's weights, where they lie elsewhere now.
        device: Where to compute; None takes the record's choice.
        command: The command line that is run.

    Raises:
        ValueError: If it is no record, or the model or the extractor have other weights now.
    """
    record = read_record(path)
    try:
        request = request_from_dict(record["request"])
        weights_of_model, weights_of_extractor = record["weights"], record["extractor"]["weights"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is not a whole record: {error} is missing or wrong.") from None
    request = _elsewhere(request, weights, device)
    if request.sampling is not None:
        request = replace(request, sampling=replace(request.sampling, weights=weights_of_model))
    name = digest(record["request"])[:6]
    own = cache / f"replay-{name}"
    found = evaluate_quality(
        request,
        out or Path("evaluations") / f"replay-{name}",
        cache=own,
        command=command,
        extractor_weights=weights_of_extractor,
    )
    if found is not None:
        print("\n".join(compared(record["figures"], found["figures"])))
        shutil.rmtree(own)


def _elsewhere(request: QualityRequest, weights: str | None, device: str | None) -> QualityRequest:
    if weights is not None:
        request = replace(request, weights=weights)
    if device is not None and request.sampling is not None:
        request = replace(request, sampling=replace(request.sampling, device=device))
    return request


def compared(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[str]:
    """A line for every row that differs, or one that says that none does."""
    lines = []
    for old, new in zip(before, now, strict=True):
        for name, figure in old["figures"].items():
            again = new["figures"].get(name)
            if again is None or again["value"] != figure["value"]:
                told = "nothing" if again is None else f"{again['value']:.17g}"
                lines.append(
                    f"{old['images']} against {old['reference']}: {name} was {figure['value']:.17g}, is {told}"
                )
    return lines or ["all figures are those of the record"]
