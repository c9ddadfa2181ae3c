"""Scores of `genaim evaluate probe` that are kept, a small JSON file for each, so that the same command goes on."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import genaim
from apps.cache_keys import hash_code
from apps.folders import read_json, write_json
from genaim.data.sources import digest
from genaim.evaluation.probe_protocols import Protocol
from genaim.evaluation.probe_sweep import Unit
from genaim.evaluation.probes import Scores


class KeptScores:
    """The finished units of a sweep, in files that are there whole or are not."""

    def __init__(self, folder: Path, decisive: Mapping[str, Any], protocols: Mapping[str, Protocol]) -> None:
        """Takes the folder, and what decides a score beside its unit: JSON-able, and the protocols by name."""
        self.folder, self.decisive, self.protocols = folder, decisive, protocols

    def __contains__(self, unit: Any) -> bool:
        return self._file(unit).exists()

    def __getitem__(self, unit: Unit) -> Scores:
        return Scores(**read_json(self._file(unit))["scores"])

    def __setitem__(self, unit: Unit, scores: Scores) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file(unit), {**self._key(unit), "scores": scores._asdict()})

    def _key(self, unit: Unit) -> dict[str, Any]:
        return {**self.decisive, "unit": unit._asdict(), "protocol": asdict(self.protocols[unit.probe])}

    def _file(self, unit: Unit) -> Path:
        return self.folder / f"{digest(self._key(unit))}.json"


@cache
def library_code() -> str:
    """Hash of genaim's source files: after an edit of the library, probes are measured anew."""
    return hash_code(sorted(Path(genaim.__path__[0]).rglob("*.py")))
