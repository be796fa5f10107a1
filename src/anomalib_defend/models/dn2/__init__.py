"""k nearest neighbours on frozen features of a pretrained encoder."""

from .lightning_model import DN2

__all__ = ["DN2"]
