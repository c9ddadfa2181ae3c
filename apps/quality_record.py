"""What `genaim evaluate fid` writes: record.json, which repeats the measurement, record.md, and the images if asked."""

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import model_validator

from apps.extractors import NamedExtractor
from apps.folders import read_json, write_text
from apps.quality_request import QualityRequest, request_to_dict
from apps.request import Settings, sampling_in_words
from apps.sample import libraries, machine
from apps.sample import write_record as write_lines
from apps.tables import markdown_table
from genaim.config import Config
from genaim.data.sources import digest
from genaim.evaluation.chunks import pictures
from genaim.evaluation.image_sets import CHUNK, num_chunks
from genaim.evaluation.npz import write_npz
from genaim.evaluation.quality import SPLITS, Figure
from genaim.files import file_written_whole

FORMAT = "genaim evaluate 3"
OUT = Path("evaluations")
RECORD, TABLE = "record.json", "record.md"
HEADINGS = {
    "fid": "FID",
    "kid": "KID x 1000",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "Inception score",
}
ADVICE = {
    "name": "the record was edited, measure again",
    "weights": "give that one by --weights",
    "config": "restore the config.json beside its weights",
    "code": "restore its source files",
    "layer": "install the libraries that the record names",
    "logits": "install the libraries that the record names",
}
"""What to do where a replay finds another extractor, by what differs in `NamedExtractor.record`."""
SCALES = {"kid": 1000.0}


class Row(NamedTuple):
    """Figures of some images against a reference."""

    images: str
    images_count: int
    images_size: str
    """``WIDTHxHEIGHT``; so the reference's."""
    images_digest: str
    """Key of the `ImageSet`."""
    reference: str
    reference_count: int | None
    """None where a file of statistics does not say it."""
    reference_size: str
    """``unknown`` where a file of statistics does not say it."""
    reference_digest: str
    """Of the content of its images, or of its statistics."""
    reference_kind: Literal["images", "statistics"]
    figures: dict[str, Figure]


class RecordedExtractor(Config):
    """What a record tells of an extractor, see `NamedExtractor.record`."""

    name: str
    weights: str
    config: str | None
    code: str | None
    layer: str
    logits: str | None


class Record(Config):
    """What ``record.json`` must hold for a replay."""

    format: str
    command: str
    request: QualityRequest
    weights: str | None
    settings: dict[str, Any] | None
    extractor: RecordedExtractor
    inception_score_splits: int
    figures: list[Row]
    notes: list[str]
    libraries: dict[str, str]
    machine: dict[str, str | int]

    @model_validator(mode="after")
    def _rows_of_the_request(self) -> "Record":
        wanted = len(self.request.references) * (2 if self.request.floor else 1)
        if len(self.figures) != wanted:
            raise ValueError(f"key 'figures' has {len(self.figures)} rows, and key 'request' asks for {wanted}")
        if not all(row.figures for row in self.figures):
            raise ValueError("key 'figures' has a row without figures")
        return self


def make_record(
    request: QualityRequest,
    settings: Settings | None,
    weights: str | None,
    rows: Sequence[Row],
    extractor: NamedExtractor,
    command: Sequence[str],
    device: str,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``record.json`` holds.

    Args:
        request: What was asked for.
        settings: How the model was sampled; None where nothing was.
        weights: Fingerprint of the model.
        rows: The figures.
        extractor: Of the features.
        command: The command line that repeats this.
        device: Kind of device that computed.
        notes: What a reader of the figures should know.
    """
    if settings is not None:  # the label of every image follows from the rule
        rule = None if settings["labels"] is None else request.labels
        settings = {k: v for k, v in settings.items() if k != "names"} | {"labels": rule}
    return {
        "format": FORMAT,
        "command": shlex.join(command),
        "request": request_to_dict(request),
        "weights": weights,
        "settings": settings,
        "extractor": extractor.record(),
        "inception_score_splits": SPLITS,
        "figures": rows_to_dicts(rows),
        "notes": list(notes),
        "libraries": libraries() | {"torch-fidelity": version("torch-fidelity")},
        "machine": machine(device) | {"device": device},
    }


def rows_to_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """JSON-able."""
    return [row._asdict() | {"figures": {name: found._asdict() for name, found in row.figures.items()}} for row in rows]


def read_record(path: Path) -> dict[str, Any]:
    """A record of an evaluation, from its file or folder.

    Raises:
        ValueError: If it is something else, or of another version of genaim's records.
    """
    path = path / RECORD if path.is_dir() else path
    record = read_json(path)
    found = record.get("format") if isinstance(record, dict) else None
    if not isinstance(found, str) or not found.startswith(FORMAT.rpartition(" ")[0]):
        raise ValueError(f"'{path}' is not a record of genaim evaluate; give the record.json that it wrote.")
    if found != FORMAT:
        raise ValueError(f"'{path}' is a record of version '{found}', and this genaim reads '{FORMAT}'; measure again.")
    assert isinstance(record, dict)
    return record


def check_same_extractor(extractor: NamedExtractor, earlier: Mapping[str, Any] | None) -> None:
    """Raises ValueError if an extractor is not that of an earlier record, naming what differs."""
    if earlier is None:
        return
    for what, now in extractor.record().items():
        if now != (before := earlier["extractor"].get(what)):
            raise ValueError(
                f"extractor '{extractor.name}' has {what} {now}, but the record was made with {before}; {ADVICE[what]}."
            )


def changed_references(references: Sequence[tuple[str, str]], earlier: Mapping[str, Any] | None) -> list[str]:
    """A line for each reference, by name and digest, that has other content than in an earlier record."""
    rows = [] if earlier is None else earlier["figures"]  # its first rows are of the references in order
    return [
        f"the reference '{name}' has other content now"
        for (name, now), row in zip(references, rows, strict=False)
        if now != row["reference_digest"]
    ]


def folder_for(request: QualityRequest, out: Path | None) -> Path:
    """The folder of a measurement: ``out``, or one that the request names.

    Raises:
        ValueError: If it holds another measurement, or other files.
    """
    wanted = request_to_dict(request)
    subject = request.images if request.sampling is None else request.sampling.model
    folder = out or OUT / f"{Path(subject or '').stem}-{request.kind}-{digest(wanted)[:6]}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file; choose another --out.")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            found = read_record(folder)["request"]
        except (ValueError, OSError, KeyError):
            raise ValueError(f"folder '{folder}' holds other files; choose another --out.") from None
        if found != json.loads(json.dumps(wanted)):
            raise ValueError(f"folder '{folder}' holds another measurement; choose another --out.")
    return folder


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes record.json and record.md."""
    with file_written_whole(folder / RECORD) as temporary:
        write_lines(temporary, record)
    write_text(folder / TABLE, in_markdown(record))


def in_markdown(record: dict[str, Any]) -> str:
    """The record for a reader."""
    request, settings, extractor = record["request"], record["settings"], record["extractor"]
    lines = ["# Reconstruction" if request["kind"] == "rfid" else "# Generation", "", f"    {record['command']}", ""]
    lines += [*table(record["figures"]), ""]
    lines += [f"- features: {extractor['name']}, weights {extractor['weights']}, preset {request['preset']}"]
    if settings is None and request["sampling"] is not None:
        lines += [f"- model: {request['sampling']['model']}, weights {record['weights']}"]
    if settings is not None:
        lines += [
            f"- model: {settings['model']}, weights {settings['weights']}; seed {settings['seed']}, "
            f"{sampling_in_words(settings)}",
            f"- classes: {settings['labels'] or 'the model has none'}"
            + (f" over {', '.join(c)}" if (c := request["sampling"]["classes"]) else ""),
        ]
    sizes = dict.fromkeys(f"{row['reference']} {row['reference_size']}" for row in record["figures"])
    lines += [f"- pixels: {record['figures'][0]['images_size']}; of references: {', '.join(sizes)}"]
    lines += [f"- {note}" for note in record["notes"]]
    if request["bootstrap"]:
        lines += [f"- FID's error: standard error, {request['bootstrap']} resamplings of the images"]
    if any("kid" in row["figures"] or "inception_score" in row["figures"] for row in record["figures"]):
        lines += ["- errors of KID and Inception score: standard deviation over their subsets and splits"]
    if any("inception_score" in row["figures"] for row in record["figures"]):
        splits = record["inception_score_splits"]
        adm = " (ADM's have 5,000 images each, which is as many at 50,000)" if request["preset"] == "adm" else ""
        lines += [f"- Inception score: {splits} splits{adm}"]
    lines += [f"- {', '.join(f'{name} {number}' for name, number in record['libraries'].items())}"]
    machine = record["machine"]
    lines += [f"- {machine['device']}: {machine['processor']}, {machine['threads']} threads"]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures as the lines of a Markdown table."""
    shown = [name for name in HEADINGS if any(name in row["figures"] for row in rows)]
    lines = []
    for row in rows:
        cells = [f"{row['images']}, {row['images_count']:,}", reference_in_words(row)]
        lines.append(cells + [figure_in_words(name, row["figures"].get(name)) for name in shown])
    return markdown_table(["images", "reference", *(HEADINGS[name] for name in shown)], lines)


def reference_in_words(row: Mapping[str, Any]) -> str:
    """Name and number of images, as ``photos, 30`` or ``ref.npz, statistics of 30``."""
    count = "" if row["reference_count"] is None else f"{row['reference_count']:,}"
    if row["reference_kind"] == "statistics":
        return f"{row['reference']}, statistics" + (f" of {count}" if count else "")
    return f"{row['reference']}, {count}"


def figure_in_words(name: str, figure: dict[str, Any] | None) -> str:
    """A cell of a table: the value with its error, in the unit of its heading."""
    if figure is None:
        return ""
    scale, value = SCALES.get(name, 1.0), figure["value"]
    if name == "fid":  # no distance is negative but by rounding, of equal sets; records hold what was computed
        value = max(0.0, value)
    error = "" if figure["error"] is None else f" ± {figure['error'] * scale:.2g}"
    return f"{value * scale:.4g}{error}"


def write_pictures(folder: Path, chunks: Path, count: int, save: str) -> None:
    """Writes the images that were measured: ``png`` into ``folder/images``, ``npz`` as ADM does."""
    parts = (pictures(chunks, k).permute(0, 2, 3, 1).numpy() for k in range(num_chunks(count)))
    if save == "npz":
        write_npz(folder / "samples.npz", arr_0=np.concatenate(list(parts))[:count])
        return
    (folder / "images").mkdir(exist_ok=True)
    for k, part in enumerate(parts):
        for i, pixels in enumerate(part[: count - k * CHUNK]):
            with file_written_whole(folder / "images" / f"{k * CHUNK + i:06d}.png") as temporary:
                Image.fromarray(pixels).save(temporary)
