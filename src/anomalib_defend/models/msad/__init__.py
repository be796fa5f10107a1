"""An encoder tuned by a contrastive loss around the normal images' mean, and nearest neighbours."""

from .lightning_model import MSAD

__all__ = ["MSAD"]
