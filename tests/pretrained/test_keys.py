"""Foreign checkpoints: read without running anything, and refused by name."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genaim.pretrained.keys import read_state


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "var.pth"
    torch.save({"weight": torch.zeros(2), "args": Malicious(tmp_path / "owned")}, path)
    with pytest.raises(ValueError, match=r"holds '.*mkdir', which could run code; it was not opened") as error:
        read_state(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()


def test_plain_checkpoints_are_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0)}
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert read_state(tmp_path / name)["a"].equal(state["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a plain PyTorch checkpoint"), (b"PK\x03\x04 cut short", "not a plain PyTorch checkpoint")],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        read_state(tmp_path / "b.pth")
    torch.save({"trainer": {"model": {}}}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="no flat state dict"):
        read_state(tmp_path / "nested.pth")
