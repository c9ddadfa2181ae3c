"""Reads the stored outputs of the official implementations under tests/parity (see its README)."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "parity"


class ParitySet:
    """One stored set: config, inputs, outputs with their tolerances, and weights."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.meta = json.loads((FOLDER / f"{name}.json").read_text())
        self.config: dict[str, Any] = self.meta["config"]
        self.arrays = np.load(FOLDER / f"{name}.npz")
        self.dtype = dtype
        self.name = name

    def __getitem__(self, key: str) -> Tensor:
        array = torch.from_numpy(self.arrays[key])
        return array.to(self.dtype) if array.is_floating_point() else array

    def state(self) -> dict[str, Tensor]:
        """The official state dict, in the wanted format."""
        return self._cast(load_file(FOLDER / f"{self.name}.safetensors"))

    def formula_state(self, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
        """The state dict of a set without weight file, from the integer formula in its json."""
        rule = self.meta["weights"]
        state = {}
        for key, shape in shapes.items():
            size = int(np.prod(shape))
            if key in rule.get("zero", []):
                state[key] = torch.zeros(shape)
                continue
            u = _uniform(zlib.crc32(f"{rule['salt']}:{key}".encode()), size)
            if len(shape) >= 2:
                gain = rule["gain"].get(key, rule["gain"]["(all others)"])
                values = gain * np.sqrt(3 / np.prod(shape[1:])) * u
            else:
                values = 1 + 0.3 * u if key.endswith(".weight") else 0.2 * u
            state[key] = torch.from_numpy(values.astype(np.float32)).view(shape)
        for key, first in rule["formula_check"].items():
            assert torch.allclose(state[key].flatten()[:3], torch.tensor(first), rtol=1e-6)
        return self._cast(state)

    def check(self, key: str, got: Tensor, *, part: tuple[slice, ...] = (), float64: float = 1e-6) -> None:
        """Asserts that an output equals the stored one: within the stored rtol and atol in float32, within ``float64``
        of the largest value in float64, exactly where the set says so. ``part`` cuts the stored array."""
        row, reference = self.meta["arrays"][key], self.arrays[key][part]
        ours = got.detach().numpy()
        assert ours.shape == reference.shape, f"{key}: {ours.shape} instead of {reference.shape}"
        if row.get("exact"):
            assert (ours == reference).all(), f"{key}: {(ours != reference).mean():.1%} of the values differ"
            return
        deviation = np.abs(ours - reference)
        if self.dtype == torch.float64:
            # the stored arrays are rounded to float32, half a unit in the last place
            allowed = float64 * np.abs(reference).max() + 2.0**-24 * np.abs(reference)
        else:
            allowed = row["atol"] + row["rtol"] * np.abs(reference)
        assert (deviation <= allowed).all(), f"{key}: off by {(deviation / allowed).max():.2f} times the tolerance"

    def _cast(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in state.items()}


def _uniform(base: int, size: int) -> np.ndarray:
    """Numbers in [-1, 1) by SplitMix64, as the sets define them."""
    with np.errstate(over="ignore"):
        x = np.arange(size, dtype=np.uint64) + np.uint64(base << 32)
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(40)).astype(np.float64) / 2**23 - 1
