"""Knowledge distillation of a frozen encoder into a small network, which knows normal images alone."""

from .lightning_model import KDAD

__all__ = ["KDAD"]
