"""Novelty detection by a small network that maps normal images near a point."""

from .lightning_model import DeepSVDD

__all__ = ["DeepSVDD"]
