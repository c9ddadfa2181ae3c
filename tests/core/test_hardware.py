"""Devices and number formats are asked of the hardware."""

import pytest
import torch

from genaim.core import hardware
from genaim.core.hardware import fast_bfloat16, pick_device, pick_dtype


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="'cuda' is not available on this machine; use auto, or one of: cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="there is no device 'cuda:9'; use auto, or cuda:0 to cuda:1"):
        pick_device("cuda:9")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu'; use auto"):
        pick_device("tpu")
    for name in ("cpu:abc", "cpu:1", "cpu:", "cpu:-1"):
        with pytest.raises(ValueError, match=f"there is no device '{name}'; use auto, or cpu"):
            pick_device(name)
    assert pick_device("cpu:0") == torch.device("cpu:0")
    with pytest.raises(ValueError, match="unknown dtype 'fp8'; use auto"):
        pick_dtype("fp8", torch.device("cpu"))


@pytest.mark.parametrize(("capability", "fast"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512_f", False)])
def test_bfloat16_needs_its_instructions(capability: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without them was measured 4 times slower in bfloat16 than in float32."""
    monkeypatch.setattr(hardware, "cpu_capabilities", lambda: {capability: True})
    cpu = torch.device("cpu")
    assert fast_bfloat16(cpu) is fast
    assert pick_dtype("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert pick_dtype("float32", cpu) == torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_older_pytorch_is_asked_in_its_own_way(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.10 has no get_capabilities."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert fast_bfloat16(torch.device("cpu")) is fast
