"""Samplers: functions that drive any genaim model to pictures, all through the one loop in `samplers.decode`."""

from typing import TYPE_CHECKING, Any

from samplers.generate import generate
from samplers.inpaint import edit, inpaint, outpaint
from samplers.prepare import prepare
from samplers.super_resolve import super_resolve

if TYPE_CHECKING:
    from samplers.pipeline import GenAIMPipeline

__all__ = ["GenAIMPipeline", "edit", "generate", "inpaint", "outpaint", "prepare", "super_resolve"]


def __getattr__(name: str) -> Any:
    """`GenAIMPipeline`, whose module imports diffusers, when it is first asked for."""
    if name != "GenAIMPipeline":
        raise AttributeError(f"module 'samplers' has no attribute '{name}'")
    from samplers.pipeline import GenAIMPipeline

    return GenAIMPipeline
