"""`genaim evaluate replay`: a record's measurement once more, from nothing."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.quality import evaluate_quality
from apps.quality_record import Record, changed_references, read_record, rows_to_dicts
from apps.quality_request import QualityRequest
from genaim.config import validate
from genaim.data.sources import digest

Figures = Mapping[str, Mapping[str, Any]]
OTHER_IMAGES = {
    "files": "have other content",
    "fid": "are made with other labels, settings or code, another config of the model, number of threads or device",
    "rfid": "are made with other code, another config of the tokenizer, number of threads or device",
}
"""What the digest of images tells where it has changed, by what they are; models of other weights are refused."""


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
        ValueError: If it is no whole record, or the model or the extractor are others now.
    """
    record = read_record(path)
    whole = validate(Record, record, f"record '{path}'")
    request = _request(whole, weights, device)
    record["figures"] = rows_to_dicts(whole.figures)
    name = digest(record["request"])[:6]
    own = cache / f"replay-{name}"
    found = evaluate_quality(
        request, out or Path("evaluations") / f"replay-{name}", cache=own, command=command, earlier=record
    )
    if found is not None:
        print("\n".join(compared(record, found)))
        shutil.rmtree(own)


def _request(record: Record, weights: str | None, device: str | None) -> QualityRequest:
    request = record.request
    if request.sampling is not None:
        request = replace(request, sampling=replace(request.sampling, weights=record.weights))
    return replace(request, weights=weights or request.weights, device=device or request.device)


def compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines of what differs between two records of one request, with possible reasons; or one that figures agree."""
    told = []
    for old, new in zip(before["figures"], now["figures"], strict=True):
        rows = f"{old['images']} against {old['reference']}"
        told += [f"{rows}: {line}" for line in different_figures(old["figures"], new["figures"])]
    references = [(row["reference"], row["reference_digest"]) for row in now["figures"]]
    changed = list(dict.fromkeys(changed_references(references, before)))
    if not told and not changed:
        return ["all figures are those of the record"]
    old, new = before["figures"][0], now["figures"][0]  # later rows are of the same images, or of a floor
    if old["images_digest"] != new["images_digest"]:
        kind = "files" if before["request"]["sampling"] is None else before["request"]["kind"]
        # Reconstructions of other images are others; whether for that alone their digests do not tell.
        if kind != "rfid" or old["reference_digest"] == new["reference_digest"]:
            changed.append(f"the images '{new['images']}' {OTHER_IMAGES[kind]} now")
    return [*told, *changed, *(f"possible reason: {reason}" for reason in reasons(before, now))]


def different_figures(before: Figures, now: Figures) -> list[str]:
    """A line for each figure whose value or error differs, or that only one side has."""
    lines = []
    for name in dict.fromkeys([*before, *now]):
        for part in ("value", "error"):
            old, new = (figures[name][part] if name in figures else None for figures in (before, now))
            if old != new:
                what = name if part == "value" else f"error of {name}"
                lines.append(f"{what} was {_number(old)}, is {_number(new)}")
    return lines


def reasons(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences of machines and libraries, which round differently."""
    found = []
    for part in ("machine", "libraries"):
        for name in dict.fromkeys([*before[part], *now[part]]):
            old, new = before[part].get(name), now[part].get(name)
            if old != new:
                found.append(f"{name} was {old}, is {new}")
    return found


def _number(value: float | None) -> str:
    return "absent" if value is None else repr(value)  # all digits: the last bit counts
