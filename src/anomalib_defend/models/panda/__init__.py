"""An encoder whose features of the normal images are drawn together, and nearest neighbours."""

from .lightning_model import PANDA

__all__ = ["PANDA"]
