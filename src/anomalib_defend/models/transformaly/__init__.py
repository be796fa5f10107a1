"""Novelty detection by the blocks of a ViT that students imitate on normal images, and by its features."""

from .lightning_model import Transformaly

__all__ = ["Transformaly"]
