"""Novelty detection by a fully convolutional network that is pushed to zero on normal images."""

from .lightning_model import FCDD

__all__ = ["FCDD"]
