"""DEFEND + masked knowledge distillation."""

from .lightning_model import Defend

__all__ = ["Defend"]
