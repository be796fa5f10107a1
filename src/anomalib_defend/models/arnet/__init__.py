"""Novelty detection by restoring the colour and orientation that were erased from an image."""

from .lightning_model import ARNet

__all__ = ["ARNet"]
