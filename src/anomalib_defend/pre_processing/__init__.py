"""Resize and normalise, with the same numbers in training, on the command line and after export."""

from .resize_normalize import AntialiasedResize, ResizeNormalize

__all__ = ["AntialiasedResize", "ResizeNormalize"]
