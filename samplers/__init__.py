"""Samplers: functions that drive any genaim model to pictures, all through the one loop in `samplers.decode`."""

from samplers.generate import generate

__all__ = ["generate"]
