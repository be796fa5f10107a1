"""Novelty detection by a transformer that restores the features of normal images, several classes at once."""

from .lightning_model import UniAD

__all__ = ["UniAD"]
